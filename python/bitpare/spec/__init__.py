"""Values that describe what to do: specs, configs, grids and budgets, without modules or state."""
