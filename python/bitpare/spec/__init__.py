"""Values that say what is wanted: specs, configs, grids and budgets. No modules, no state."""
