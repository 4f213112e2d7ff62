"""The plans of the statements whose plan matters."""
