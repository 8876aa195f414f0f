"""Pages to look at: one HTML file that holds everything, opens without a network and asks nothing of one."""
