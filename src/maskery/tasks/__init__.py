"""Tasks: model, masking and objectives wired into what the loop can train."""
