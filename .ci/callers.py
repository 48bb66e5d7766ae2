"""Real applications of Django's on minis3storage: each is driven through its own API, on a real S3 server.

    python .ci/callers.py DIR

DIR is what the server serves as the bucket: there the flows look at what is stored, past the storage. The environment
has ENDPOINT, ACCESS_KEY, SECRET_KEY, BUCKET and REGION, as rclone.sh prints them; .ci/run installs the applications.
A line each, with the requests that the storage made; what fails shows its traceback, and the status is 1.
"""
import collections
import contextlib
import io
import json
import logging
import os
import pathlib
import pickle
import sys
import tarfile
import tempfile
import traceback
import urllib.request
from importlib.metadata import version

import django
from django.apps import apps
from django.conf import settings

BUCKET = pathlib.Path(sys.argv[1])
HERE = tempfile.TemporaryDirectory(prefix='callers-')  # the database, and the sources of templates and static files
BACKEND = 'minis3storage.S3Storage'
S3 = {'endpoint_url': os.environ['ENDPOINT'], 'bucket_name': os.environ['BUCKET'], 'region_name': os.environ['REGION'],
      'access_key': os.environ['ACCESS_KEY'], 'secret_key': os.environ['SECRET_KEY']}

settings.configure(
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': os.path.join(HERE.name, 'db.sqlite3')}},
    DEFAULT_AUTO_FIELD='django.db.models.AutoField',
    INSTALLED_APPS=['django.contrib.admin', 'django.contrib.auth', 'django.contrib.contenttypes',
                    'django.contrib.messages', 'django.contrib.sessions', 'django.contrib.staticfiles',
                    'compressor', 'dbbackup', 'django_cleanup', 'easy_thumbnails', 'health_check', 'imagekit',
                    'import_export', 'sorl.thumbnail', __name__],
    MIDDLEWARE=['django.contrib.sessions.middleware.SessionMiddleware',
                'django.contrib.auth.middleware.AuthenticationMiddleware',
                'django.contrib.messages.middleware.MessageMiddleware'],
    ROOT_URLCONF=__name__,
    SECRET_KEY='callers',
    STATICFILES_FINDERS=['compressor.finders.CompressorFinder'],
    STATIC_ROOT=os.path.join(HERE.name, 'static'),
    STATIC_URL='/static/',
    TEMPLATES=[{'BACKEND': 'django.template.backends.django.DjangoTemplates',
                'APP_DIRS': True, 'DIRS': [os.path.join(HERE.name, 'templates')],
                'OPTIONS': {'context_processors': ['django.template.context_processors.request',
                                                   'django.contrib.auth.context_processors.auth',
                                                   'django.contrib.messages.context_processors.messages']}}],
    USE_TZ=True,
    # The storage, as README says; run() sets the location.
    STORAGES={'default': {'BACKEND': BACKEND, 'OPTIONS': S3},
              'generated': {'BACKEND': BACKEND, 'OPTIONS': dict(S3, file_overwrite=True)},
              'dbbackup': {'BACKEND': BACKEND, 'OPTIONS': dict(S3, location='backups')},
              'compressor': {'BACKEND': BACKEND, 'OPTIONS': dict(
                  S3, location='static', querystring_auth=False, file_overwrite=True)},
              'staticfiles': {'BACKEND': 'django.contrib.staticfiles.storage.StaticFilesStorage'}},
    # The applications.
    COMPRESS_ENABLED=True, COMPRESS_OFFLINE=True, COMPRESS_OFFLINE_MANIFEST_STORAGE_ALIAS='compressor',
    DBBACKUP_CLEANUP_KEEP=2, DBBACKUP_DATE_FORMAT='%Y-%m-%d-%H%M%S-%f',
    IMAGEKIT_DEFAULT_FILE_STORAGE='generated',
    IMPORT_EXPORT_TMP_STORAGE_CLASS='import_export.tmp_storages.MediaStorage')
django.setup()

# flake8: noqa: E402 (what follows wants settings)
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import call_command
from django.db import connection, models
from django.template.loader import render_to_string
from django.test import Client, override_settings
from django.test.utils import setup_test_environment
from django.urls import path
from easy_thumbnails.fields import ThumbnailerImageField
from health_check.views import HealthCheckView
from imagekit.models import ImageSpecField, ProcessedImageField
from imagekit.processors import ResizeToFill
from import_export.admin import ImportExportModelAdmin
from PIL import Image
from sorl.thumbnail import delete as sorl_delete
from sorl.thumbnail import get_thumbnail as sorl_thumbnail

# ---- Models and URLs ----------------------------------------------------------------------------


class Photo(models.Model):
    image = ThumbnailerImageField(upload_to='photos')


class Avatar(models.Model):
    image = ProcessedImageField(upload_to='avatars', processors=[ResizeToFill(20, 10)], format='PNG')
    small = ImageSpecField(source='image', processors=[ResizeToFill(8, 8)], format='JPEG')


class Document(models.Model):
    file = models.FileField(upload_to='documents')


class Book(models.Model):
    title = models.CharField(max_length=100)


admin.site.register(Book, ImportExportModelAdmin)
urlpatterns = [path('admin/', admin.site.urls),
               path('health/', HealthCheckView.as_view(checks=['health_check.checks.Storage']))]

# ---- What the flows look with -------------------------------------------------------------------

flows, requests = [], collections.Counter()


class Requests(logging.Handler):
    """Counts the requests in the storage's log, a line each at DEBUG, and shows what else it says."""

    def emit(self, record):
        if record.levelno == logging.DEBUG:
            requests[record.args[0]] += 1
        else:
            print('  minis3storage: ' + record.getMessage())


def flow(package):
    """Note a flow through `package` down; the line of its docstring is what gets printed."""
    def note(function):
        flows.append((package, function))
        return function
    return note


def picture(width=40, height=30, name='picture.png'):
    file = io.BytesIO()
    Image.new('RGB', (width, height), 'navy').save(file, 'PNG')
    return ContentFile(file.getvalue(), name=name)


def stored(location=None):
    """Return {name: bytes} of all that the server holds at a location, the flow's own by default."""
    root = BUCKET / (location or settings.AWS_LOCATION)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def fetched(url):
    """Return what a browser gets for a URL."""
    with urllib.request.urlopen(url, timeout=60) as response:
        return response.read()


def size_of(body):
    return Image.open(io.BytesIO(body)).size


@contextlib.contextmanager
def no_requests():
    """Check that the block asks S3 for nothing."""
    before = requests.copy()
    yield
    assert requests == before, (requests, before)


# ---- The flows ----------------------------------------------------------------------------------


@flow('easy-thumbnails')
def easy_thumbnails():
    """thumbnail of an ImageField made, served, found without a request, made from a pickle, deleted with its source"""
    photo = Photo.objects.create(image=picture())
    thumbnail = photo.image.get_thumbnail({'size': (10, 10), 'crop': True})
    body = stored()[thumbnail.name]
    assert size_of(body) == (10, 10) and fetched(thumbnail.url) == body
    with no_requests():
        again = Photo.objects.get(pk=photo.pk).image.get_thumbnail({'size': (10, 10), 'crop': True})
        assert again.name == thumbnail.name
    # A pickle of it, as a cache keeps it, has its storage inside, without keys: those come from the settings then.
    with override_settings(AWS_ACCESS_KEY_ID=S3['access_key'], AWS_SECRET_ACCESS_KEY=S3['secret_key']):
        small = pickle.loads(pickle.dumps(photo)).image.get_thumbnail({'size': (5, 5)})
    assert size_of(stored()[small.name]) == (5, 4)
    photo.image.delete()
    assert stored() == {}


@flow('sorl-thumbnail')
def sorl():
    """get_thumbnail() made, served, found without a request; made anew after each clear_delete_...; delete()"""
    name = default_storage.save('sorl.png', picture())
    thumbnail = sorl_thumbnail(name, '10x10', crop='center')
    body = stored()[thumbnail.name]
    assert size_of(body) == (10, 10) and fetched(thumbnail.url) == body
    with no_requests():
        again = sorl_thumbnail(name, '10x10', crop='center')
        assert (again.name, again.size) == (thumbnail.name, [10, 10])
    call_command('thumbnail', 'clear_delete_referenced', verbosity=0)
    assert list(stored()) == [name]
    assert sorl_thumbnail(name, '10x10', crop='center').read() == body
    call_command('thumbnail', 'clear_delete_all', verbosity=0)
    assert list(stored()) == [name]
    sorl_thumbnail(name, '10x10', crop='center')
    sorl_delete(name)
    assert stored() == {}


@flow('django-imagekit')
def imagekit():
    """ProcessedImageField resized; ImageSpecField made, served, found in S3, pickled, made anew by force"""
    avatar = Avatar.objects.create(image=picture())
    small = avatar.small.url
    files = stored()
    assert size_of(files[avatar.image.name]) == (20, 10) and size_of(files[avatar.small.name]) == (8, 8)
    assert len(files) == 2 and fetched(small) == files[avatar.small.name]
    cache.clear()  # imagekit's memory of what exists: S3 is asked
    again = Avatar.objects.get(pk=avatar.pk).small
    assert fetched(again.url) == files[avatar.small.name] and stored() == files
    assert pickle.loads(pickle.dumps(again)).read() == files[avatar.small.name]
    again.storage.save(again.name, ContentFile(b'spoilt'))  # its storage overwrites
    again.generate(force=True)
    assert stored() == files
    default_storage.delete(avatar.small.name)
    avatar.delete()
    assert stored() == {}


@flow('django-health-check')
def health_check():
    """the view's check of the storage passes and leaves nothing behind; with a wrong key it fails"""
    response = Client().get('/health/', {'format': 'json'})
    assert response.status_code == 200 and list(response.json().values()) == ['OK'], response.content
    assert stored() == {}
    wrong = {'BACKEND': BACKEND, 'OPTIONS': dict(S3, secret_key='wrong')}
    with override_settings(STORAGES=dict(settings.STORAGES, default=wrong)):
        response = Client().get('/health/', {'format': 'json'})
    assert response.status_code == 500 and list(response.json().values()) != ['OK'], response.content


@flow('django-cleanup')
def cleanup():
    """the old file goes when the field changes, the file when the instance is deleted"""
    document = Document.objects.create(file=ContentFile(b'old', name='a.txt'))
    assert stored() == {'documents/a.txt': b'old'}
    document = pickle.loads(pickle.dumps(document))
    document.file = ContentFile(b'new', name='b.txt')
    document.save()
    assert stored() == {'documents/b.txt': b'new'}
    Document.objects.get().delete()
    assert stored() == {}


@flow('django-import-export')
def import_export():
    """a csv file imported through the admin, on S3 (MediaStorage) between upload and confirmation"""
    client = Client()
    client.force_login(User.objects.create_superuser('admin'))
    content = 'id,title\n,Größe\n,中文\n'.encode()
    page = client.post('/admin/__main__/book/import/', {
        'format': '0', 'import_file': ContentFile(content, name='books.csv')})
    (name, body), = stored().items()
    assert name.startswith('django-import-export/') and body == content, (name, body)
    assert not Book.objects.exists()
    client.post('/admin/__main__/book/process_import/', page.context['confirm_form'].initial)
    assert list(Book.objects.values_list('title', flat=True).order_by('pk')) == ['Größe', '中文']
    assert stored() == {}
    Book.objects.all().delete()


@flow('django-dbbackup')
def dbbackup():
    """dbbackup, listbackups, dbrestore, clean-up of old ones; mediabackup of 9 MiB in parts, mediarestore"""
    Book.objects.create(title='Größe')
    for _ in range(3):
        call_command('dbbackup', compress=True, quiet=True)
    assert len(stored('backups')) == 6  # each with its .metadata
    output = io.StringIO()
    call_command('listbackups', stdout=output, quiet=True)
    assert sorted(line.split()[0] for line in output.getvalue().splitlines()) == sorted(
        name for name in stored('backups') if not name.endswith('.metadata'))
    Book.objects.all().delete()
    call_command('dbrestore', interactive=False, uncompress=True, quiet=True)
    assert Book.objects.get().title == 'Größe'
    call_command('dbbackup', compress=True, clean=True, quiet=True)
    assert len(stored('backups')) == 4, list(stored('backups'))

    files = {'a.txt': b'a', 'deep/er/ü.bin': os.urandom(9 * 1024 ** 2)}
    for name, body in files.items():
        default_storage.save(name, ContentFile(body))
    call_command('mediabackup', quiet=True)
    name, = [name for name in stored('backups') if name.endswith('.tar')]
    with tarfile.open(BUCKET / 'backups' / name) as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == files
    for name in files:
        default_storage.delete(name)
    call_command('mediarestore', interactive=False, quiet=True)
    assert stored() == files
    for name in files:
        default_storage.delete(name)


@flow('django-compressor')
def compressor():
    """two css files compressed offline, twice; the manifest is on S3, the page has the unsigned URL"""
    for name, text in {'static/a.css': 'body { color : red; }', 'static/b.css': 'i { background: url(b.png) }',
                       'templates/page.html': '{% load compress %}{% compress css %}'
                       '<link rel="stylesheet" href="/static/a.css"><link rel="stylesheet" href="/static/b.css">'
                       '{% endcompress %}'}.items():
        file = pathlib.Path(HERE.name, name)
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    for _ in range(2):
        call_command('compress', verbosity=0)
    files = stored('static')
    manifest = json.loads(files.pop('manifest.json'))
    (name, body), = files.items()
    assert body == b'body{color:red}i{background:url(/static/b.png)}', body
    url = '%s/%s/static/%s' % (os.environ['ENDPOINT'], os.environ['BUCKET'], name)
    page = render_to_string('page.html')
    assert 'href="%s"' % url in page and len(manifest) == 1, (page, manifest)


def run(package, function):
    """Run a flow in a location of its own, print its line; return whether it passed."""
    requests.clear()
    try:
        with override_settings(AWS_LOCATION=package):
            function()
        failed = ''
    except Exception:
        failed = 'FAILED: '
        traceback.print_exc(file=sys.stdout)
    asked = ', '.join('%d %s' % (count, method) for method, count in sorted(requests.items()))
    print('%s%s %s: %s (%s)' % (failed, package, version(package), function.__doc__, asked))
    return not failed


setup_test_environment()
apps.get_app_config('django_cleanup').ready()  # once more: the models are younger than its signals
logging.getLogger('health_check').setLevel(logging.CRITICAL)  # it would log a traceback for the wrong key
logger = logging.getLogger('minis3storage')
logger.addHandler(Requests())
logger.setLevel(logging.DEBUG)
call_command('migrate', verbosity=0)
with connection.schema_editor() as editor:
    for model in (Photo, Avatar, Document, Book):
        editor.create_model(model)
passed = [run(*named) for named in flows]
print('Django %s, Pillow %s: %d of %d flows passed' % (
    django.__version__, version('Pillow'), sum(passed), len(passed)))
sys.exit(not all(passed))
