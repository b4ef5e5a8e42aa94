"""Pages and administration; the data plane has its own (`gateway.api.urls`)."""

from django.contrib import admin
from django.urls import include, path

from gateway.metrics import metrics

urlpatterns = [
    path("admin/", admin.site.urls),
    path("metrics", metrics),
    path("", include("dashboard.urls")),
]
