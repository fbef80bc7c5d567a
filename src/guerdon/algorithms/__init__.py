"""Ways to learn a policy from recorded transitions, one file each."""
