"""The demo: a real training job, watched by a real Prometheus and Alertmanager. Nothing else imports it."""
