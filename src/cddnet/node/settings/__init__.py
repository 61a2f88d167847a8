"""What a person writes for a node: its configuration and its rules."""
