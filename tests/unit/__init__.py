"""Pure decisions and small parts, each with nothing but itself."""
