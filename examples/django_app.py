"""Django in one file, with the backend of the folder `ybsmart_django`.

Run it with `make example NAME=django`, or `python examples/django_app.py`. In a project, copy the
folder and take over DATABASES.
"""

import os
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from local import PORT, database


def configure(url: str) -> None:
    parts = urlsplit(url)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "ybsmart_django",
                "HOST": parts.hostname,
                "PORT": parts.port,
                "USER": unquote(parts.username or ""),
                "PASSWORD": unquote(parts.password or ""),
                "NAME": parts.path.lstrip("/"),
                "OPTIONS": {"load_balance": "true", "pool": {"max_size": 8, "timeout": 5}},
            }
        },
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        USE_TZ=True,
    )
    django.setup()


def index(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT host(inet_server_addr())")
        (node,) = cursor.fetchone()
    return HttpResponse(f"served by {node}\n")


@transaction.atomic
def visit(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE visits (at timestamptz) ON COMMIT DROP")
        cursor.execute("INSERT INTO visits VALUES (now())")
        cursor.execute("SELECT count(*) FROM visits")
        (count,) = cursor.fetchone()
    return HttpResponse(f"{count} visit\n")


urlpatterns = [path("", index), path("transaction", visit)]

if __name__ == "__main__":
    with database():
        configure(os.environ["DATABASE_URL"])
        try:
            call_command("runserver", f"127.0.0.1:{PORT}", use_reloader=False)
        finally:
            connection.close_pool()
