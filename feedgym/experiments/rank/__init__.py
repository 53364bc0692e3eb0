"""Ranking: training and judging by what users did with what they were shown."""
