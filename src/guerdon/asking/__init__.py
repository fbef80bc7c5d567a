"""Sending requests, storing replies: the one place where money is spent."""
