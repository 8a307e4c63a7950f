"""The built-in methods of Ostinato, one module each, found by entry point like anybody else's."""
