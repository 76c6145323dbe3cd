"""The loop: what is wanted is asked for, made, compared with what is, and said in a status. Nothing here is remembered
that the cluster does not know better: whatever ends this program, the next one goes on from what is there."""
