"""Scripts that print one table each, and the small checkpoint that they and the tests run on."""
