"""Pictures of what converted networks do: marked frames, graphs, times, pages of HTML."""
