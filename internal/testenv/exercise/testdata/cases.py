# Cases that are run directly and by a job, and must print the same. Each runs
# in an empty directory of its own; what it raises is printed with its errno.
import ctypes, errno, fcntl, hashlib, mmap, os, re, shutil, signal, socket, stat, struct, subprocess, sys, tempfile, time

libc = ctypes.CDLL(None, use_errno=True)
cases = []

def case(f):
    cases.append(f)
    return f

def attempt(what, *args, **kw):
    """The result of a call, or the name of its error."""
    try:
        return what(*args, **kw)
    except OSError as e:
        return errno.errorcode.get(e.errno, e.errno)

def call(name, *args):
    """A function of libc: its result, or the name of its error."""
    ctypes.set_errno(0)
    r = getattr(libc, name)(*args)
    return errno.errorcode[ctypes.get_errno()] if r < 0 else r

def put(name, data=b'data', mode=0o644):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data)
    os.close(fd)

def get(name):
    with open(name, 'rb') as f: return f.read()

def linkfd(fd, name): return call('linkat', -100, b'/proc/self/fd/%d' % fd, -100, name, 0x400)

def c(name, text, *flags):
    put(name + '.c', text.encode())
    subprocess.check_call(['gcc', '-o', name, name + '.c', *flags])

@case
def statx_btime():
    put('a')
    buf = ctypes.create_string_buffer(256)
    def statx(name):
        r = call('statx', -100, name, 0x100, 0xfff, buf)
        mask, = struct.unpack_from('I', buf, 0)
        btime = struct.unpack_from('qI', buf, 80)
        return r, bool(mask & 0x800), btime
    r, has, first = statx(b'a')
    now = time.time()
    os.utime('a', (1, 1)); os.chmod('a', 0o600)
    print(r, has, abs(first[0] - now) < 60, statx(b'a')[2] == first)
    os.rename('a', 'b')
    print(statx(b'b')[2] == first)

@case
def d_type():
    put('file'); os.mkdir('dir'); os.symlink('x', 'link'); os.mkfifo('fifo')
    s = socket.socket(socket.AF_UNIX); s.bind('sock')
    for e in sorted(os.scandir('.'), key=lambda e: e.name):
        print(e.name, e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False), e.is_symlink(), e.inode() == os.lstat(e.name).st_ino)
    out = subprocess.check_output(['ls', '-aiU']).decode().split()
    print(str(os.stat('.').st_ino) in out, str(os.stat('..').st_ino) in out)

@case
def find_xdev():
    os.makedirs('a/b/c'); put('a/b/c/f')
    print(subprocess.check_output('find . -xdev | sort; du -x --apparent-size a/b/c/f', shell=True))
    print(os.stat('a').st_dev == os.stat('a/b/c/f').st_dev)

@case
def statfs():
    s = os.statvfs('.')
    print(s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax, s.f_bavail > 0)

@case
def o_direct():
    fd = os.open('d', os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    m = mmap.mmap(-1, 8192); m.write(b'x' * 8192)
    print(os.write(fd, m), os.preadv(fd, [m], 0), os.fstat(fd).st_size, attempt(os.preadv, fd, [memoryview(m)[:4096]], 4096))

@case
def rename_flags():
    def rename(a, b, flags): return call('renameat2', -100, a, -100, b, flags)
    put('a', b'a'); put('b', b'b'); os.mkdir('d')
    print(rename(b'a', b'b', 1), rename(b'a', b'c', 1), rename(b'c', b'b', 2), get('b'), get('c'))
    print(rename(b'c', b'd', 2), os.path.isdir('c'), os.path.isfile('d'), rename(b'c', b'none', 2), rename(b'c', b'd', 3), rename(b'c', b'd', 64))
    print(rename(b'b', b'w', 4), oct(os.lstat('b').st_mode), os.lstat('b').st_rdev, get('w'))
    print(attempt(os.rename, 'c', 'c/x'), attempt(os.rename, 'none', 'x'), attempt(os.rename, '.', 'x'))

@case
def setgid_directory():
    os.mkdir('d'); os.chown('d', -1, 1000); os.chmod('d', 0o2775)
    put('d/f'); os.mkdir('d/s'); os.symlink('x', 'd/l'); os.mkfifo('d/p')
    for n in 'fslp': st = os.lstat('d/' + n); print(n, oct(st.st_mode), st.st_gid)
    os.chmod('d', 0o1777); print(oct(os.stat('d').st_mode))

@case
def ficlone():
    put('a'); put('b')
    with open('a') as a, open('b', 'r+') as b: print(attempt(fcntl.ioctl, b, 0x40049409, a.fileno()))
    with open('a') as a, open('b') as b: print(attempt(fcntl.ioctl, b, 0x40049409, a.fileno()))
    with open('b', 'r+') as b: print(attempt(fcntl.ioctl, b, 0x40049409, 0))

@case
def file_flags():
    put('a')
    get_, set_ = 0x80086601, 0x40086602
    with open('a') as f:
        def flags(): return struct.unpack('q', fcntl.ioctl(f, get_, bytes(8)))[0]
        before = flags()
        fcntl.ioctl(f, set_, struct.pack('q', before | 0x40)) # no dump
        print(hex(before), hex(flags()))
        print(attempt(fcntl.ioctl, f, set_, struct.pack('q', before | 0x80))) # no atime
        print(hex(flags()), attempt(fcntl.ioctl, f, set_, struct.pack('q', before)), hex(flags()))
        print(attempt(fcntl.ioctl, f, 0x1234), attempt(fcntl.ioctl, f, 0x5401, bytes(64)))

@case
def utimens():
    put('a')
    now, omit = 0x3fffffff, 0x3ffffffe
    def set(a, m): return call('utimensat', -100, b'a', struct.pack('qqqq', 5, a, 7, m), 0)
    print(set(123456789, 987654321)); st = os.stat('a'); print(st.st_atime_ns, st.st_mtime_ns)
    print(set(omit, 1)); st = os.stat('a'); print(st.st_atime_ns, st.st_mtime_ns)
    print(set(2, omit)); st = os.stat('a'); print(st.st_atime_ns, st.st_mtime_ns)
    print(set(omit, omit), set(now, omit)); st = os.stat('a'); print(abs(st.st_atime - time.time()) < 60, st.st_mtime_ns)
    print(set(10**9, 0), set(-1, 0))
    os.utime('a', ns=(-5 * 10**9, -1)); st = os.stat('a'); print(st.st_atime_ns, st.st_mtime_ns)
    os.utime('a', (2**33, 2**33)); print(os.stat('a').st_mtime)

@case
def any_byte_names():
    for i in range(1, 256):
        n = bytes([i])
        if n not in (b'.', b'/'): put(n, n)
    l = sorted(os.listdir(b'.'))
    print(len(l), all(get(n) == n for n in l), hashlib.sha256(b''.join(l)).hexdigest())

@case
def long_names():
    put('n' * 255); print(get('n' * 255), attempt(put, 'n' * 256), attempt(os.stat, 'n' * 256), attempt(os.mkdir, 'x' * 256))
    print(attempt(os.stat, 'a/' * 2048), attempt(os.access, './' * 2047 + '.', 0), attempt(os.symlink, 'x' * 4096, 's'), attempt(os.symlink, 'x' * 4095, 's'), attempt(os.symlink, '', 'e'))
    print(len(os.readlink('s')), attempt(os.stat, 's'), attempt(os.stat, ''))

@case
def loops():
    os.symlink('b', 'a'); os.symlink('a', 'b'); os.symlink('s', 's')
    print(attempt(os.stat, 'a'), attempt(os.open, 's', os.O_RDONLY), attempt(os.open, 's', os.O_RDONLY | os.O_NOFOLLOW), attempt(os.open, 's', os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    put('l0')
    for i in range(1, 42): os.symlink(f'l{i-1}', f'l{i}')
    print(attempt(os.stat, 'l40') != 'ELOOP', attempt(os.stat, 'l41'))

@case
def telldir():
    names = {f'f{i:04}' for i in range(500)}
    for n in names: put(n, b'')
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.readdir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    d = libc.opendir(b'.')
    def all():
        while e := libc.readdir(d): yield ctypes.string_at(e + 19).decode()
    at, order = [], []
    while True:
        at.append(libc.telldir(d))
        e = libc.readdir(d)
        if not e: break
        order.append(ctypes.string_at(e + 19).decode())
    print(set(order) == names | {'.', '..'}, len(order), len(set(at)) == len(at))
    for i in (0, 1, 77, 250, 501): libc.seekdir(d, at[i]); print(list(all()) == order[i:])
    libc.seekdir(d, at[100])
    for n in order[:300]:
        if n in names: os.unlink(n)
    rest = list(all())
    print(set(order[300:]) <= set(rest), len(rest) == len(set(rest)))
    libc.rewinddir(d); print(set(all()) == {'.', '..'} | set(order[300:]))
    libc.closedir(d)

@case
def executable_replaced():
    put('a', b'#!/bin/sh\nread x; echo old $x\n', 0o755)
    put('b', b'#!/bin/sh\necho new\n', 0o755)
    shutil.copy('/bin/cat', 'prog')
    p = subprocess.Popen(['./prog'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdin.write(b'1\n'); p.stdin.flush(); print(p.stdout.readline()) # it runs
    print(attempt(os.open, 'prog', os.O_WRONLY), attempt(os.truncate, 'prog', 0))
    shutil.copy('/bin/echo', 'new'); os.rename('new', 'prog')
    print(p.communicate(b'still\n'), p.returncode, subprocess.check_output(['./prog', 'hello']))
    fd = os.open('prog', os.O_WRONLY); print(attempt(subprocess.call, ['./prog'])); os.close(fd)
    print(subprocess.call(['./prog']), attempt(subprocess.call, ['./prog.none']))
    os.chmod('prog', 0o644); print(attempt(subprocess.call, ['./prog'])); os.mkdir('dir'); print(attempt(subprocess.call, ['./dir']))
    put('bad', b'\x7fELFnonsense', 0o755); put('interp', b'#!/nowhere\n', 0o755); print(attempt(subprocess.call, ['./bad']), attempt(subprocess.call, ['./interp']))

@case
def library_replaced():
    c('lib.so', 'int f(void) { return 1; } int g(void) { return 2; }', '-shared', '-fPIC')
    l = ctypes.CDLL('./lib.so'); print(l.f())
    c('new.so', 'int f(void) { return 3; } int g(void) { return 4; }', '-shared', '-fPIC'); os.rename('new.so', 'lib.so')
    print(l.f(), l.g(), subprocess.check_output([sys.executable, '-c', 'import ctypes; print(ctypes.CDLL("./lib.so").g())']))

@case
def full_and_limits():
    put('a')
    with open('a', 'r+') as f: print(attempt(os.pwrite, f.fileno(), b'x', 2**63 - 1), attempt(os.ftruncate, f.fileno(), 2**62), attempt(os.posix_fallocate, f.fileno(), 0, 2**50), os.fstat(f.fileno()).st_size)
    print(attempt(os.truncate, 'a', -1), attempt(os.truncate, 'none', 0), attempt(os.truncate, '.', 0))
    print(attempt(os.open, '.', os.O_WRONLY), attempt(os.open, 'a', os.O_RDONLY | os.O_DIRECTORY), attempt(os.open, 'a/b', os.O_RDONLY), attempt(os.open, 'none/', os.O_CREAT | os.O_WRONLY))
    print(attempt(os.mkdir, 'a'), attempt(os.mkdir, '.'), attempt(os.rmdir, '.'), attempt(os.rmdir, 'a'), attempt(os.unlink, '.'), attempt(os.mkdir, 'none/x'), attempt(os.rmdir, '..'))
    print(attempt(os.link, '.', 'x'), attempt(os.link, 'none', 'x'), attempt(os.link, 'a', 'a'), attempt(os.unlink, 'a/'), attempt(os.symlink, 'x', 'a'))

@case
def acls():
    def run(s): return subprocess.run(s, shell=True, capture_output=True).stdout
    os.umask(0o027); os.mkdir('d'); run('setfacl -d -m u:1:rwx,g:1000:rx,o::r d; setfacl -m u:1:r d')
    put('d/f', mode=0o666); os.mkdir('d/s'); put('x', mode=0o666)
    print(run('getfacl -n d d/f d/s x'), oct(os.stat('d/f').st_mode), oct(os.stat('d/s').st_mode))
    os.chmod('d/f', 0o600); print(run('getfacl -n d/f; setfacl -b d/f; getfacl -n d/f')); os.umask(0o022)

@case
def xattrs():
    put('a'); os.symlink('a', 'l')
    print(attempt(os.getxattr, 'a', 'user.x'), attempt(os.setxattr, 'a', 'user.x', b'1', os.XATTR_REPLACE), attempt(os.setxattr, 'a', 'user.x', b'1', os.XATTR_CREATE), attempt(os.setxattr, 'a', 'user.x', b'1', os.XATTR_CREATE))
    print(os.listxattr('a'), call('getxattr', b'a', b'user.x', None, 0), call('listxattr', b'a', None, 0), call('getxattr', b'a', b'user.x', ctypes.create_string_buffer(1), 0))
    os.setxattr('a', 'user.big', b'y' * 2000); print(call('getxattr', b'a', b'user.big', ctypes.create_string_buffer(9), 9), call('listxattr', b'a', ctypes.create_string_buffer(3), 3))
    print(attempt(os.setxattr, 'a', 'user.' + 'k' * 251, b''), attempt(os.setxattr, 'a', 'user.huge', b'z' * 65537), attempt(os.setxattr, 'a', 'bogus.x', b''), attempt(os.setxattr, 'l', 'user.x', b'', 0, follow_symlinks=False), attempt(os.setxattr, 'a', 'user.', b''))
    print(attempt(os.removexattr, 'a', 'user.x'), attempt(os.removexattr, 'a', 'user.x'))

@case
def holes():
    fd = os.open('h', os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b'a' * 65536, 1 << 20); os.ftruncate(fd, 4 << 20)
    def seek(at, how): return attempt(os.lseek, fd, at, how)
    print([seek(x, h) for h in (os.SEEK_DATA, os.SEEK_HOLE) for x in (0, 1 << 20, (1 << 20) + 5, 2 << 20, (4 << 20) - 1, 4 << 20, 5 << 20)])
    print(call('fallocate', fd, 3, ctypes.c_long((1 << 20) + 4096), ctypes.c_long(8192)), seek(1 << 20, os.SEEK_HOLE), seek((1 << 20) + 4096, os.SEEK_DATA))
    os.fsync(fd); print(os.fstat(fd).st_blocks)
    print(call('fallocate', fd, 0, ctypes.c_long(0), ctypes.c_long(0)), call('fallocate', fd, 2, ctypes.c_long(0), ctypes.c_long(4096)), call('fallocate', fd, 0, ctypes.c_long(-1), ctypes.c_long(4)))

@case
def tmpfile():
    fd = os.open('.', os.O_RDWR | os.O_TMPFILE, 0o640)
    os.write(fd, b'hidden'); print(os.listdir('.'), os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode))
    print(linkfd(fd, b'shown'), os.listdir('.'), get('shown'), os.fstat(fd).st_nlink)
    x = os.open('.', os.O_RDWR | os.O_TMPFILE | os.O_EXCL, 0o640)
    print(linkfd(x, b'never'), attempt(os.open, '.', os.O_RDONLY | os.O_TMPFILE))

@case
def unlinked():
    fd = os.open('u', os.O_RDWR | os.O_CREAT, 0o644); os.write(fd, b'0123456789'); os.unlink('u')
    os.fchmod(fd, 0o600); os.fchown(fd, 1, 2); os.ftruncate(fd, 5); os.utime(fd, (1, 2)); st = os.fstat(fd)
    print(oct(st.st_mode), st.st_uid, st.st_gid, st.st_size, st.st_mtime, st.st_nlink, os.listdir('.'))
    again = os.open(f'/proc/self/fd/{fd}', os.O_RDWR | os.O_APPEND); os.write(again, b'more')
    print(os.pread(fd, 100, 0), os.readlink(f'/proc/self/fd/{fd}').endswith('/u (deleted)'), linkfd(fd, b'back'))
    os.setxattr(fd, 'user.a', b'1'); print(os.listxattr(fd))
    os.mkdir('d'); d = os.open('d', os.O_RDONLY); os.rmdir('d')
    print(os.listdir(d), attempt(os.open, 'x', os.O_CREAT | os.O_WRONLY, dir_fd=d), os.fstat(d).st_nlink, attempt(os.mkdir, 'x', dir_fd=d))
    os.mkdir('cwd'); os.chdir('cwd'); os.rmdir('../cwd'); print(attempt(os.getcwd), attempt(os.listdir, '.')); os.chdir('/')

@case
def nodes():
    os.mknod('plain', stat.S_IFREG | 0o600); print(oct(os.lstat('plain').st_mode), attempt(os.mknod, 'plain', stat.S_IFREG), attempt(os.mknod, 'p', stat.S_IFDIR))
    s = socket.socket(socket.AF_UNIX); s.bind('sock'); s.listen()
    print(attempt(os.open, 'sock', os.O_RDONLY), attempt(socket.socket(socket.AF_UNIX).bind, 'sock'))
    q = socket.socket(socket.AF_UNIX); q.connect('sock'); a, _ = s.accept(); a.send(b'through'); print(q.recv(100)); s.close()
    print(attempt(socket.socket(socket.AF_UNIX).connect, 'sock'), attempt(socket.socket(socket.AF_UNIX).connect, 'none'))
    os.mkfifo('fifo'); r = os.open('fifo', os.O_RDONLY | os.O_NONBLOCK); w = os.open('fifo', os.O_WRONLY); os.write(w, b'fifo'); print(os.read(r, 9), attempt(os.lseek, r, 0, 0))
    os.close(r); print(attempt(os.open, 'fifo', os.O_WRONLY | os.O_NONBLOCK))

# What the kernel refuses in a user namespace: see docs/deviations.md.

@case
def refused_device():
    r = attempt(os.mknod, 'null', stat.S_IFCHR | 0o666, os.makedev(1, 3)); print(r)
    if not r: st = os.lstat('null'); print(oct(st.st_mode), os.major(st.st_rdev), os.minor(st.st_rdev))

@case
def refused_trusted():
    put('a'); print(attempt(os.setxattr, 'a', 'trusted.x', b't'), attempt(os.getxattr, 'a', 'trusted.x'))

@case
def refused_immutable():
    put('a')
    with open('a') as f:
        before, = struct.unpack('q', fcntl.ioctl(f, 0x80086601, bytes(8)))
        for flag in (0x20, 0x10): # append only, immutable
            print(attempt(fcntl.ioctl, f, 0x40086602, struct.pack('q', before | flag)) in (0, bytes(8)), attempt(os.open, 'a', os.O_WRONLY) == 'EPERM')
        attempt(fcntl.ioctl, f, 0x40086602, struct.pack('q', before))

@case
def refused_ranges():
    put('a', bytes(16384)); fd = os.open('a', os.O_RDWR)
    for mode in (8, 32): print(call('fallocate', fd, mode, ctypes.c_long(4096), ctypes.c_long(4096)), os.fstat(fd).st_size) # collapse, insert
    d = os.open('.', os.O_RDONLY); print(os.lseek(d, 0, os.SEEK_END) == 2**63 - 1)

@case
def permissions():
    os.mkdir('d', 0o700); put('d/f'); put('r', mode=0o600); put('s', mode=0o755); os.chmod('s', 0o6755); os.chmod('.', 0o755); os.mkdir('t'); os.chmod('t', 0o1777); put('t/mine')
    here = os.getcwd()
    pid = os.fork()
    if pid == 0:
        sys.stdout.flush()
        os.setgroups([]); os.setgid(1000); os.setuid(1000)
        def o(*a): r = attempt(os.open, *a); return r if isinstance(r, str) else 'ok'
        print(o('d/f', 0), o('r', 0), o('s', 0), o('s', 1), attempt(os.unlink, 's'), attempt(os.unlink, 't/mine'), o('t/x', os.O_CREAT | os.O_WRONLY, 0o644), attempt(os.chmod, 's', 0o777), attempt(os.chown, 't/x', 0, -1), attempt(os.utime, 's'), attempt(os.utime, 's', (1, 1)), attempt(os.access, 'r', os.R_OK), attempt(os.mkdir, 'x'), attempt(os.chmod, 't/x', 0o4755), oct(os.stat('t/x').st_mode), attempt(os.mknod, 't/n', stat.S_IFCHR, 259), attempt(os.setxattr, 's', 'user.x', b''), attempt(os.link, 's', 't/hard') )
        sys.stdout.flush(); os._exit(0)
    print(os.waitpid(pid, 0)[1], os.lstat('t/x').st_uid)

@case
def set_ids():
    def mode(): return oct(os.stat('s').st_mode)
    put('s'); os.chmod('s', 0o6755); print(mode())
    with open('s', 'ab') as f: f.write(b'x')
    print(mode()); os.truncate('s', 1); print(mode()); open('s', 'w').close(); print(mode())
    os.chown('s', 1, 1); print(mode()); os.chmod('s', 0o6644); os.chown('s', 2, 2); print(mode())
    os.chmod('s', 0o6777)
    if (pid := os.fork()) == 0:
        os.setgroups([]); os.setgid(1000); os.setuid(1000)
        fd = os.open('s', os.O_WRONLY); os.write(fd, b'y'); os._exit(0)
    os.waitpid(pid, 0); print(mode())

@case
def positions():
    put('a', b'0123456789')
    fd = os.open('a', os.O_RDWR); d = os.dup(fd); os.lseek(fd, 3, 0); print(os.read(d, 2), os.lseek(fd, 0, 1), attempt(os.lseek, fd, -1, 0), os.lseek(fd, 100, 0), os.read(fd, 5))
    os.write(fd, b'z'); print(os.fstat(fd).st_size, os.pread(fd, 100, 8)[:4])
    a = os.open('a', os.O_RDWR | os.O_APPEND); os.pwrite(a, b'end', 0); print(os.pread(a, 3, 0), os.fstat(a).st_size, os.lseek(a, 0, 1))
    print(attempt(os.pread, fd, 1, -1), attempt(os.write, os.open('a', 0), b''), attempt(os.read, os.open('a', 1), 1), attempt(os.read, os.open('.', 0), 1))
    print(attempt(os.copy_file_range, fd, a, 3, 0, 0), attempt(os.sendfile, fd, a, 0, 4), attempt(os.fdatasync, fd), attempt(os.fsync, os.open('.', 0)), os.sync())

@case
def mappings():
    put('m', bytes(8192)); f = open('m', 'r+b'); s = mmap.mmap(f.fileno(), 8192); p = mmap.mmap(f.fileno(), 8192, mmap.MAP_PRIVATE)
    s[10:14] = b'abcd'; print(os.pread(f.fileno(), 4, 10), p[10:14]); p[0:4] = b'priv'; print(os.pread(f.fileno(), 4, 0))
    os.pwrite(f.fileno(), b'Z', 100); print(s[100:101], p[5000:5001]); s.flush(); os.truncate('m', 4096); print(os.stat('m').st_size)
    if (pid := os.fork()) == 0: s[5000]; os._exit(0)
    print(os.waitpid(pid, 0)[1])
    print(attempt(mmap.mmap, os.open('m', os.O_RDONLY), 10, mmap.MAP_SHARED, mmap.PROT_WRITE))

@case
def locks():
    put('l'); f, g = os.open('l', os.O_RDWR), os.open('l', os.O_RDWR)
    fcntl.flock(f, fcntl.LOCK_EX); print(attempt(fcntl.flock, g, fcntl.LOCK_SH | fcntl.LOCK_NB)); os.close(f); print(attempt(fcntl.flock, g, fcntl.LOCK_SH | fcntl.LOCK_NB))
    fcntl.lockf(g, fcntl.LOCK_EX, 10, 5)
    def child(what):
        r, w = os.pipe()
        if (pid := os.fork()) == 0: os.write(w, repr(what()).encode()); os._exit(0)
        os.waitpid(pid, 0); os.close(w); return os.read(r, 1000)
    def query():
        t = struct.unpack('hhqqi4x', fcntl.fcntl(os.open('l', os.O_RDWR), fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))); return t[:4] + (t[4] == os.getppid(),)
    def other(): return attempt(fcntl.lockf, os.open('l', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 7), attempt(fcntl.lockf, os.open('l', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
    print(child(query), child(other)); os.close(os.open('l', 0)); print(child(query))
    print(attempt(fcntl.lockf, os.open('l', os.O_RDONLY), fcntl.LOCK_EX))

@case
def leases_and_others():
    put('a'); fd = os.open('a', os.O_RDONLY)
    print(fcntl.fcntl(fd, fcntl.F_GETFL) & 0o7777, os.fpathconf(fd, 'PC_NAME_MAX'), os.pathconf('.', 'PC_LINK_MAX') > 0, attempt(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED))
    print(call('syncfs', fd), call('readahead', fd, ctypes.c_long(0), ctypes.c_long(4)), call('sync_file_range', fd, ctypes.c_long(0), ctypes.c_long(4), 7))
    p = os.open('a', os.O_PATH); print(attempt(os.read, p, 1), attempt(os.fchmod, p, 0o600), os.fstat(p).st_size, os.open(f'/proc/self/fd/{p}', os.O_RDONLY) > 0)
    l = os.open('.', os.O_PATH | os.O_DIRECTORY); print(os.listdir(os.open('.', os.O_RDONLY, dir_fd=l)))

@case
def read_only():
    os.mkdir('m')
    if (pid := os.fork()) == 0:
        # A read-only mount of the job's own over a directory of the view.
        ns = 0x00020000
        r = [call('unshare', ns), call('mount', b'none', b'/', None, 0x44000, None), call('mount', b'm', b'm', None, 4096, None), call('mount', None, b'm', None, 4096 | 32 | 1, None)]
        print(r[0], r[2], r[3], attempt(put, 'm/a'), attempt(os.mkdir, 'm/d'), attempt(os.chmod, 'm', 0)); sys.stdout.flush(); os._exit(0)
    os.waitpid(pid, 0)

def main():
    top = os.getcwd()
    for f in cases:
        os.mkdir(f.__name__); os.chdir(f.__name__)
        print('==', f.__name__)
        try:
            f()
        except BaseException as e:
            import traceback
            if isinstance(e, SystemExit): raise
            print('raised', repr(e), [l.lineno for l in traceback.extract_tb(e.__traceback__)])
        sys.stdout.flush()
        os.chdir(top)

main()
