"""What a node tells of itself: its log and its metrics, without patient data."""
