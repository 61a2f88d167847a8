"""CT physics: pure functions of arrays with explicit generators."""
