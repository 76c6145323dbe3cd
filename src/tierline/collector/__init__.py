"""The collector in an endpoint's pod: reads its containers' metrics, labels them with its names, hands them on."""
