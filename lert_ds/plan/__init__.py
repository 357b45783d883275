"""`lert-ds plan`: what a training would take on machines that are not there, by formula."""
