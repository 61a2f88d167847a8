"""Losses: functions (prediction, target) -> scalar tensor, in network range."""
