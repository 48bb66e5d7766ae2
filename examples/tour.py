"""What demo.py does before it serves, and instead of it: README's story, and a tour of the site.

Both print what they do, and stop with a Failure at the first thing that is not as it should be.
"""

import contextlib
import doctest
import io
import os
import urllib.error
import urllib.request

import django
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.test import Client
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))


class Failure(Exception):
    """One sentence for the user: what is wrong and what to do about it."""


def check(right, failure):
    if not right:
        raise Failure(failure)


def tell_story(names):
    """Run README's doctest with the models in `names`, print it with its exchanges with S3."""
    with open(os.path.join(HERE, os.pardir, 'README.rst'), encoding='utf-8') as file:
        story = file.read().partition('.. story\n')[2].partition('.. end of the story')[0]
    names = dict(names)
    for piece in doctest.DocTestParser().parse(story):
        if isinstance(piece, str):
            print('\n' + piece.strip() + '\n' if piece.strip() else '', end='')
            continue
        print('>>> ' + piece.source.rstrip().replace('\n', '\n... '))
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                exec(compile(piece.source, 'the story', 'single'), names)
            want, got = piece.want, output.getvalue()
        except Exception as error:
            if not piece.exc_msg:
                raise
            want, got = piece.exc_msg, '%s: %s\n' % (type(error).__name__, error)
        print(got, end='')
        if not doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS):
            raise Failure('The story went wrong: "%s" gave %s instead of %s.' % (
                piece.source.strip(), got.strip() or 'nothing', want.strip() or 'nothing'))


def visit(site):
    """Go through the site as a browser would: each way in, each way out, and with lies.

    `site` is demo.py, which runs as ``__main__`` and is not to be imported once more.
    """
    client = Client(enforce_csrf_checks=True, HTTP_HOST='127.0.0.1')
    pdf, photo = b'%PDF-1.4 ' + bytes(range(256)) * 1000, io.BytesIO()
    Image.new('RGB', (2, 2)).save(photo, 'PNG')

    def ask(method, path, status, form=None, **headers):
        print(method, path, *headers.values())
        if method == 'POST':
            form = dict(form or {}, csrfmiddlewaretoken=client.cookies['csrftoken'].value)
        response = getattr(client, method.lower())(path, form, **headers)
        print(response.status_code)
        check(response.status_code == status, 'The site answered %d instead of %d to %s %s.' % (
            response.status_code, status, method, path))
        return response

    def s3(method, url, status=200, body=None, headers=()):
        try:
            response = urllib.request.urlopen(urllib.request.Request(
                url, body, dict(headers), method=method), timeout=60)
        except urllib.error.HTTPError as error:
            response = error
        except OSError as error:
            raise Failure('S3 is not reached with a signed URL: %s' % error)
        with contextlib.closing(response):
            print('        %s (the signed URL) -> %d' % (method, response.getcode()))
            check(response.getcode() == status, 'S3 answered %d instead of %d to a signed URL.' % (
                response.getcode(), status))
            return response.headers, response.read()

    def put(body, size, status):
        """Upload `body` past Django, and say it has `size`; return name and token."""
        signed = ask('POST', '/sign', 200, {
            'field': 'pdf', 'name': 'Zoë <1>.pdf', 'size': size}).json()
        s3('PUT', signed['url'], 403, body, {'Content-Type': 'text/html'})
        s3('PUT', signed['url'], 200, body, signed['headers'])
        ask('POST', '/attach', status, {'pdf': signed['token']})
        return site.TOKENS.unsign(signed['token']).split(':', 2)[2], signed['token']

    print('\nThe site: upload through Django, list, download.')
    ask('GET', '/', 200)
    ask('POST', '/', 302, {'pdf': ContentFile(pdf, name='Zoë’s <my> résumé.pdf'),
                           'photos': ContentFile(photo.getvalue(), name='me.png')})
    resume = site.Resume.objects.get()
    listed = ask('GET', '/', 200).content.decode()
    for field, content in ('pdf', pdf), ('photos', photo.getvalue()):
        path = '/%d/%s' % (resume.pk, field)
        headers, downloaded = s3('GET', ask('GET', path + '/download', 302)['Location'])
        check(path in listed and downloaded == content and headers['Content-Disposition'] ==
              site.disposition('attachment', getattr(resume, field).name),
              'What was uploaded is not what the site shows as %s.' % path)

    print('\nStreamed through Django, in ranges.')
    path = '/%d/pdf' % resume.pk
    whole = ask('GET', path, 200)
    check(whole['Accept-Ranges'] == 'bytes', 'Browsers are not told that they may seek.')
    for status, body, headers in (
            (200, pdf, {}), (206, pdf[5:9], {'HTTP_RANGE': 'bytes=5-8'}),
            (206, pdf[200000:], {'HTTP_RANGE': 'bytes=200000-'}),
            (206, pdf[-7:], {'HTTP_RANGE': 'bytes=-7'}),
            (416, b'', {'HTTP_RANGE': 'bytes=999999-'}),
            (200, pdf, {'HTTP_RANGE': 'bytes=5-8', 'HTTP_IF_RANGE': '"other"'}),
            (304, b'', {'HTTP_IF_NONE_MATCH': whole['ETag']}),
            (304, b'', {'HTTP_IF_MODIFIED_SINCE': whole['Last-Modified']})):
        check(b''.join(ask('GET', path, status, **headers)) == body, 'Wrong bytes: %s' % headers)
    check(ask('HEAD', path, 200)['Content-Length'] == str(len(pdf)), 'HEAD tells no size.')
    if django.VERSION >= (4, 2):
        from asgiref.sync import async_to_sync
        from django.test import AsyncClient, override_settings

        async def streamed():
            response = await AsyncClient().get(path, headers={'range': 'bytes=5-200000'})
            return response.is_async, b''.join([piece async for piece in response])
        with override_settings(ALLOWED_HOSTS=['testserver']):
            check(async_to_sync(streamed)() == (True, pdf[5:200001]), 'ASGI streams otherwise.')
    resume.pdf.save('page.html', ContentFile(b'<script>'))
    shown = ask('GET', path, 200)
    check(shown['Content-Type'] == 'application/octet-stream' and shown['Content-Disposition']
          .startswith('attachment') and shown['X-Content-Type-Options'] == 'nosniff',
          'A page that was uploaded is shown as one.')

    print('\nUploaded past Django.')
    name, token = put(pdf, len(pdf), 302)
    check(site.Resume.objects.latest('pk').pdf.read() == pdf, 'The upload is not what was sent.')
    ask('POST', '/attach', 409, {'pdf': token})
    ask('POST', '/attach', 400, {'pdf': token[:-1]})
    check(default_storage.exists(name), 'A false token deleted the upload.')
    for lie, size in (pdf, 9), (b'<script>', 8):  # another size; no PDF
        name, _ = put(lie, size, 400)
        check(not default_storage.exists(name), 'An upload that is not what was said stays.')
    ask('POST', '/sign', 400, {'field': 'pdf', 'name': 'a.pdf', 'size': site.LIMIT + 1})
    print('\nDelete.')
    names = []
    for resume in site.Resume.objects.all():
        names += filter(None, (resume.pdf.name, resume.photos.name))
        ask('POST', '/%d/delete' % resume.pk, 302)
    check(len(names) == 3 and not any(map(default_storage.exists, names)),
          'The files of a deleted Resume are still there.')


