from django.apps import AppConfig


class GatewayConfig(AppConfig):
    name = "gateway"

    def ready(self) -> None:
        # Importing the Celery application makes it the current one, so that tasks find the broker.
        import gateway.celery  # noqa: F401
