"""What two or more agents share inside their networks."""
