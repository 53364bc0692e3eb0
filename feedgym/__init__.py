"""feedgym: a simulated feed, and the workbench that aligns generative recommenders to what its users really want."""
