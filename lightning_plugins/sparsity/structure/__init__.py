"""What belongs to each unit of a network: found in the layers, followed through the graph, taken out."""
