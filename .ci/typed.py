"""A project's code on top of a vendored copy, for mypy --strict: it reads what callers see.

libs/storages/minis3storage.py is the copy. A type that became Any, or another, is an error here.
"""
import datetime
from typing import Any, Dict, List, Optional, Tuple

from libs.storages.minis3storage import (
    AccessDenied, Bucket, CallingFormat, Credentials, NoCredentials, NoSuchBucket, NoSuchKey,
    NoSuchUpload, ObjectChanged, PreconditionFailed, S3Error, S3File, S3ManifestStaticStorage,
    S3StaticStorage, S3Storage, S3StorageFile, Unreachable,
)
from typing_extensions import assert_type

AWS_CALLING_FORMAT = CallingFormat.SUBDOMAIN


class TenantStorage(S3Storage):
    default_acl = 'private'

    @property
    def location(self) -> str:
        return 'tenants/a'

    def get_object_parameters(self, name: str) -> Dict[str, Any]:
        return dict(super().get_object_parameters(name), ContentDisposition='inline')


def keys() -> Credentials:
    return Credentials('a', 's', expires=datetime.datetime.now(datetime.timezone.utc))


storage = TenantStorage(bucket_name='b', credentials=keys)
assert_type(AWS_CALLING_FORMAT, str)
assert_type(storage.save('a', None), str)
assert_type(storage.exists('a'), bool)
assert_type(storage.size('a'), int)
assert_type(storage.delete('a'), None)
assert_type(storage.get_available_name('a', max_length=100), str)
assert_type(storage.get_modified_time('a'), datetime.datetime)
assert_type(storage.listdir(''), Tuple[List[Any], List[Any]])
assert_type(storage.url('a', {'ContentType': 'a/b'}, expire=60, http_method='PUT'), str)
assert_type(storage.presigned_post('a', max_size=9)['fields'], Any)
assert_type(S3StaticStorage().url('a'), str)
assert_type(S3ManifestStaticStorage().url('a'), str)
assert_type(S3File(storage, 'a').size, int)
assert_type(S3StorageFile(storage, 'a', 'w').write('text'), int)


def size_of(name: str) -> Optional[int]:
    try:
        return storage.size(name)
    except (NoSuchKey, ObjectChanged):
        return None
    except (AccessDenied, NoCredentials, NoSuchBucket, NoSuchUpload, PreconditionFailed) as error:
        assert_type(error.code, str)
        raise
    except Unreachable as error:
        assert_type(error.status, int)
        raise
    except S3Error as error:
        assert_type(error.request_id, str)
        raise


def copy(bucket: Bucket, key: str) -> str:
    assert_type(bucket.get_object(key).read(9), bytes)
    return bucket.put_object(key, b'body', if_none_match=True)
