"""Rewards for recorded behaviour from vision-language models."""
