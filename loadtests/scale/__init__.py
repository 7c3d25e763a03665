"""What autoscalers do with a fleet of adaptive replicas: on a virtual clock."""
