"""How hints travel between processes: one small port, and a driver a file. Nothing that travels here is kept by anybody."""
