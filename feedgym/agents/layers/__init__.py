"""Network layers shared by two or more agents."""
