"""Other projects' signatures on this engine, one module per project."""
