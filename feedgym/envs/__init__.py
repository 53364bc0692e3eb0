"""User simulators and the Gymnasium shells around them."""
