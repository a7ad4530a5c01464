"""The paper's tables: figures, grids of configurations, and what is printed."""
