"""How fast it is, next to what else there is. Nothing here fails for being slow."""
