"""What methods are made of: selection within a budget, plans, the pass that follows one, recomputation."""
