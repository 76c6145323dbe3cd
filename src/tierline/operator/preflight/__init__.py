"""What a cluster has, what it lacks, and what that means for endpoints; before anything is installed, and after."""
