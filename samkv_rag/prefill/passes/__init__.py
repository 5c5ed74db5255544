"""Building blocks of methods: selection within a budget, plans, the pass that follows a plan, recomputation."""
