"""What converted networks do, to look at: marked frames, graphs, times, pages of HTML."""
