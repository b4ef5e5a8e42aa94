"""Pages and administration; the data plane has its own (`gateway.api.urls`)."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("admin/", admin.site.urls), path("", include("dashboard.urls"))]
