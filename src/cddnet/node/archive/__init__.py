"""`cddnet archive`: every series of a population, on any number of workers."""
