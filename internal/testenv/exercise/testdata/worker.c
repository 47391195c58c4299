// worker does file operations that it reads from standard input, one a line,
// in the directory argv[1], and answers each with one line on standard output:
//
//	ok RESULTS [| RAW]     or     ERRNO-NAME
//
// RESULTS must be the same on any file system; RAW (inode number, times) only
// among processes that look at the same one. Files are named by relative
// paths without blanks, open files and maps by slot numbers.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { slots = 64, most = 1 << 20 };

static int fds[slots];
static struct { char *at; size_t len; int fd, prot; } maps[slots];
static unsigned char buf[most];
static char *arg[16];
static int args;
static int written;

static long num(int i) { return i < args ? strtol(arg[i], 0, 0) : 0; }
static const char *str(int i) { return i < args ? arg[i] : ""; }
static int fd(int i) { return fds[num(i) % slots]; }

static void fill(unsigned char *p, size_t n, unsigned seed) {
	for (size_t i = 0; i < n; i++) {
		seed = seed * 1103515245 + 12345;
		p[i] = seed >> 16;
	}
}

static uint64_t mix(uint64_t h, const void *data, size_t n) {
	const unsigned char *p = data;
	for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211u;
	return h;
}

static uint64_t hash(const void *p, size_t n) { return mix(14695981039346656037u, p, n); }

// done answers an operation that returned r.
static void done(long r) {
	if (r < 0) printf("%s\n", strerrorname_np(errno));
	else printf("ok %ld\n", r);
}

static void answer_data(long n, const unsigned char *p) {
	if (n < 0) done(n);
	else printf("ok %ld %016lx\n", n, hash(p, n));
}

static void answer_stat(int r, struct stat *st) {
	if (r < 0) { done(r); return; }
	printf("ok mode=%o nlink=%lu uid=%u gid=%u size=%ld rdev=%lx | ino=%lu mtime=%ld.%09ld ctime=%ld.%09ld dsize=%ld\n",
		st->st_mode, st->st_nlink, st->st_uid, st->st_gid,
		S_ISDIR(st->st_mode) ? 0 : st->st_size, st->st_rdev, st->st_ino,
		st->st_mtim.tv_sec, st->st_mtim.tv_nsec, st->st_ctim.tv_sec, st->st_ctim.tv_nsec, st->st_size);
}

// tree hashes all below a directory: order does not count. With print it says
// what it finds, on standard error.
static uint64_t tree(int dir, const char *path, int print, int *count) {
	uint64_t sum = 0;
	DIR *d = fdopendir(dir);
	if (!d) { close(dir); return 1; }
	struct dirent *e;
	while (errno = 0, (e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
		char name[8192];
		snprintf(name, sizeof name, "%s/%s", path, e->d_name);
		struct stat st;
		int r = fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW);
		uint64_t h = hash(name, strlen(name));
		uint64_t v[6] = {0};
		if (r < 0) v[0] = errno;
		else {
			v[1] = st.st_mode, v[2] = st.st_nlink, v[3] = S_ISDIR(st.st_mode) ? 0 : st.st_size;
			v[4] = e->d_type != DT_UNKNOWN && e->d_type != (st.st_mode & S_IFMT) >> 12;
			v[5] = e->d_ino != st.st_ino;
		}
		h = mix(h, v, sizeof v);
		if (r == 0 && S_ISREG(st.st_mode)) {
			int f = openat(dirfd(d), e->d_name, O_RDONLY | O_NOFOLLOW);
			uint64_t c = 14695981039346656037u;
			ssize_t n;
			if (f < 0) c = errno;
			else {
				while ((n = read(f, buf, most)) > 0) c = mix(c, buf, n);
				if (n < 0) c = errno;
				close(f);
			}
			h = mix(h, &c, sizeof c);
			v[0] = c;
		} else if (r == 0 && S_ISLNK(st.st_mode)) {
			ssize_t n = readlinkat(dirfd(d), e->d_name, (char *)buf, most);
			h = n < 0 ? 2 : mix(h, buf, n);
		} else if (r == 0 && S_ISDIR(st.st_mode)) {
			int sub = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
			uint64_t c = sub < 0 ? (uint64_t)errno : tree(sub, name, print, count);
			h = mix(h, &c, sizeof c);
		}
		if (print) fprintf(stderr, "%s mode=%lo nlink=%lu size=%lu type=%lu ino=%lu %016lx\n", name, v[1], v[2], v[3], v[4], v[5], v[0]);
		sum += h;
		++*count;
	}
	if (errno) sum = 3;
	closedir(d);
	return sum;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }

static void list(const char *path) {
	DIR *d = opendir(path);
	if (!d) { done(-1); return; }
	char *names[4096];
	int n = 0;
	struct dirent *e;
	while (n < 4096 && (e = readdir(d))) {
		if (asprintf(&names[n], "%s:%d", e->d_name, e->d_type) < 0) abort();
		n++;
	}
	closedir(d);
	qsort(names, n, sizeof *names, by_name);
	printf("ok");
	for (int i = 0; i < n; i++) { printf(" %s", names[i]); free(names[i]); }
	printf("\n");
}

static volatile sig_atomic_t signals;
static void on_signal(int s) { (void)s; signals++; }

// lock takes (or gives up) a lock of a kind on a whole file.
static int lock(const char *kind, int f, int type, int wait) {
	struct flock l = {.l_type = type, .l_whence = SEEK_SET};
	if (!strcmp(kind, "posix")) return fcntl(f, wait ? F_SETLKW : F_SETLK, &l);
	if (!strcmp(kind, "ofd")) return fcntl(f, wait ? F_OFD_SETLKW : F_OFD_SETLK, &l);
	int how = type == F_UNLCK ? LOCK_UN : type == F_RDLCK ? LOCK_SH : LOCK_EX;
	return flock(f, wait ? how : how | LOCK_NB);
}

// count adds n to the number in a file, one by one, each under the lock.
static void count(const char *kind, const char *path, long n) {
	int f = open(path, O_RDWR);
	if (f < 0) { done(-1); return; }
	for (long i = 0; i < n; i++) {
		char text[32] = "";
		if (lock(kind, f, F_WRLCK, 1) < 0 || pread(f, text, 31, 0) < 0) { done(-1); return; }
		int len = snprintf(text, sizeof text, "%ld\n", atol(text) + 1);
		if (pwrite(f, text, len, 0) != len || lock(kind, f, F_UNLCK, 1) < 0) { done(-1); return; }
	}
	done(close(f));
}

// append writes n records of one writer to a file opened with O_APPEND.
static void append(const char *path, long n, long who) {
	int f = open(path, O_WRONLY | O_APPEND);
	if (f < 0) { done(-1); return; }
	for (long i = 0; i < n; i++) {
		char text[32];
		int len = snprintf(text, sizeof text, "%ld %08ld\n", who, i);
		if (write(f, text, len) != len) { done(-1); return; }
	}
	done(close(f));
}

// look tells all that a name shows: by stat, by open and read, by access and
// in the directory.
static void look(const char *path) {
	struct stat st;
	int r = lstat(path, &st), e = errno;
	if (r < 0) printf("ok %s", strerrorname_np(e));
	else printf("ok mode=%o nlink=%lu size=%ld", st.st_mode, st.st_nlink, S_ISDIR(st.st_mode) ? 0 : st.st_size);
	r = access(path, F_OK);
	printf(" access=%d", r < 0 ? errno : 0);
	int f = open(path, O_RDONLY | O_NONBLOCK);
	if (f < 0) printf(" open=%s", strerrorname_np(errno));
	else {
		ssize_t n = read(f, buf, most);
		if (n < 0) printf(" read=%s", strerrorname_np(errno));
		else printf(" read=%zd,%016lx", n, hash(buf, n));
		close(f);
	}
	char dir[4096];
	snprintf(dir, sizeof dir, "%s", path);
	char *slash = strrchr(dir, '/');
	const char *base = slash ? slash + 1 : path;
	if (slash) *slash = 0;
	DIR *d = opendir(slash ? dir : ".");
	int found = 0;
	struct dirent *ent;
	while (d && (ent = readdir(d))) found |= !strcmp(ent->d_name, base);
	if (d) closedir(d);
	printf(" listed=%d\n", found);
}

static void await(void) {
	sigset_t none;
	sigprocmask(SIG_BLOCK, 0, &none);
	sigdelset(&none, SIGUSR1);
	while (!signals) sigsuspend(&none);
	signals--;
}

static void unmap(int i) {
	if (!maps[i].at) return;
	munmap(maps[i].at, maps[i].len);
	close(maps[i].fd);
	maps[i].at = 0;
}

static void setup(void) {
	struct sigaction a = {.sa_handler = on_signal};
	sigaction(SIGUSR1, &a, 0);
	sigaction(SIGALRM, &a, 0);
	sigset_t usr1;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigprocmask(SIG_BLOCK, &usr1, 0);
	for (int i = 0; i < slots; i++) fds[i] = -1;
	umask(022);
}

static void run(const char *op) {
#define is(name) (!strcmp(op, name))
	struct stat st;
	if (is("open")) {
		int *f = &fds[num(1) % slots];
		if (*f >= 0) close(*f);
		*f = open(str(4), num(2) | O_NOFOLLOW | O_NONBLOCK, (mode_t)num(3));
		done(*f < 0 ? -1 : 0);
	} else if (is("reopen")) { // by /proc/self/fd
		char name[64];
		snprintf(name, sizeof name, "/proc/self/fd/%d", fd(1));
		int *f = &fds[num(2) % slots];
		if (*f >= 0) close(*f);
		*f = open(name, num(3) | O_NONBLOCK);
		done(*f < 0 ? -1 : 0);
	} else if (is("close")) {
		done(close(fd(1)));
		fds[num(1) % slots] = -1;
	} else if (is("pread")) answer_data(pread(fd(1), buf, num(3) % most, num(2)), buf);
	else if (is("read")) answer_data(read(fd(1), buf, num(2) % most), buf);
	else if (is("pwrite")) {
		fill(buf, num(3) % most, num(4));
		done(pwrite(fd(1), buf, num(3) % most, num(2)));
	} else if (is("write")) {
		fill(buf, num(2) % most, num(3));
		done(write(fd(1), buf, num(2) % most));
	} else if (is("seek")) {
		if (fstat(fd(1), &st) == 0 && S_ISDIR(st.st_mode)) printf("ok directory\n"); // a position there is the file system's own
		else done(lseek(fd(1), num(2), num(3)));
	}
	else if (is("ftruncate")) done(ftruncate(fd(1), num(2)));
	else if (is("truncate")) done(truncate(str(1), num(2)));
	else if (is("fallocate")) done(fallocate(fd(1), num(2), num(3), num(4)));
	else if (is("copy")) {
		off_t from = num(2), to = num(4);
		done(copy_file_range(fd(1), &from, fd(3), &to, num(5), 0));
	} else if (is("map")) { // of what is there
		int i = num(2) % slots;
		unmap(i);
		if (fstat(fd(1), &st) < 0) { done(-1); return; }
		if (st.st_size > most) st.st_size = most;
		void *p = mmap(0, st.st_size, num(3), MAP_SHARED, fd(1), 0);
		if (p == MAP_FAILED) { done(-1); return; }
		maps[i].at = p, maps[i].len = st.st_size, maps[i].fd = dup(fd(1)), maps[i].prot = num(3);
		done(st.st_size);
	} else if (is("mapread") || is("mapwrite")) { // slot, offset, length, seed
		int i = num(1) % slots;
		size_t at = num(2), n = num(3);
		if (!maps[i].at || at + n > maps[i].len || (is("mapwrite") && !(maps[i].prot & PROT_WRITE))) { printf("ok unmapped\n"); return; }
		if (fstat(maps[i].fd, &st) < 0) { done(-1); return; }
		if (at + n > (size_t)st.st_size) { printf("ok beyond\n"); return; } // SIGBUS
		if (is("mapread")) { printf("ok %016lx\n", hash(maps[i].at + at, n)); return; }
		fill((unsigned char *)maps[i].at + at, n, num(4));
		size_t page = at & 4095;
		done(msync(maps[i].at + at - page, n + page, MS_SYNC));
	} else if (is("unmap")) {
		int i = num(1) % slots;
		unmap(i);
		done(0);
	} else if (is("create") || is("replace") || is("pwrite-path")) { // by a name
		char other[4096];
		snprintf(other, sizeof other, "%s.new", str(1));
		const char *name = is("replace") ? other : str(1);
		int f = open(name, is("pwrite-path") ? O_WRONLY : O_WRONLY | O_CREAT | O_EXCL, 0644);
		if (f < 0) { done(-1); return; }
		int n = snprintf((char *)buf, most, "%s %d", arg[0], ++written);
		if (write(f, buf, n) != n || close(f) < 0) { done(-1); return; }
		done(is("replace") ? rename(other, str(1)) : 0);
	} else if (is("rename")) done(syscall(SYS_renameat2, AT_FDCWD, str(1), AT_FDCWD, str(2), (unsigned)num(3)));
	else if (is("link")) done(link(str(1), str(2)));
	else if (is("linkfd")) {
		char name[64];
		snprintf(name, sizeof name, "/proc/self/fd/%d", fd(1));
		done(linkat(AT_FDCWD, name, AT_FDCWD, str(2), AT_SYMLINK_FOLLOW));
	} else if (is("unlink")) done(unlink(str(1)));
	else if (is("mkdir")) done(mkdir(str(1), num(2)));
	else if (is("rmdir")) done(rmdir(str(1)));
	else if (is("symlink")) done(symlink(str(1), str(2)));
	else if (is("mknod")) done(mknod(str(1), num(2), num(3)));
	else if (is("readlink")) answer_data(readlink(str(1), (char *)buf, most), buf);
	else if (is("chmod")) done(chmod(str(1), num(2)));
	else if (is("fchmod")) done(fchmod(fd(1), num(2)));
	else if (is("chown")) done(lchown(str(1), num(2), num(3)));
	else if (is("utimens")) {
		struct timespec ts[2] = {{num(2), num(3)}, {num(4), num(5)}};
		done(utimensat(AT_FDCWD, str(1), ts, AT_SYMLINK_NOFOLLOW));
	} else if (is("futimens")) {
		struct timespec ts[2] = {{num(2), num(3)}, {num(4), num(5)}};
		done(futimens(fd(1), ts));
	} else if (is("stat")) { int r = stat(str(1), &st); answer_stat(r, &st); }
	else if (is("lstat")) { int r = lstat(str(1), &st); answer_stat(r, &st); }
	else if (is("fstat")) { int r = fstat(fd(1), &st); answer_stat(r, &st); }
	else if (is("access")) done(access(str(1), num(2)));
	else if (is("list")) list(str(1));
	else if (is("fsync")) done(fsync(fd(1)));
	else if (is("setxattr")) done(lsetxattr(str(1), str(2), str(3), strlen(str(3)), num(4)));
	else if (is("getxattr")) answer_data(lgetxattr(str(1), str(2), buf, most), buf);
	else if (is("removexattr")) done(lremovexattr(str(1), str(2)));
	else if (is("tree") || is("dump")) {
		int d = open(str(1), O_RDONLY | O_DIRECTORY), n = 0;
		if (d < 0) { done(-1); return; }
		uint64_t h = tree(d, ".", is("dump"), &n);
		printf("ok %d %016lx\n", n, h);
	} else if (is("look")) look(str(1));
	else if (is("await")) { printf("ok\n"); fflush(stdout); await(); look(str(1)); }
	else if (is("count")) count(str(1), str(2), num(3));
	else if (is("append")) append(str(1), num(2), num(3));
	else if (is("lock")) done(lock(str(1), fd(2), num(3), 0));
	else if (is("lockwait")) { // a signal ends the wait
		struct itimerval often = {{0, 50000}, {0, 50000}}, never = {{0, 0}, {0, 0}};
		if (num(4)) setitimer(ITIMER_REAL, &often, 0);
		int r = lock(str(1), fd(2), num(3), 1), e = errno;
		setitimer(ITIMER_REAL, &never, 0);
		errno = e;
		done(r);
	} else if (is("die")) kill(getpid(), SIGKILL);
	else printf("unknown operation %s\n", op);
}

int main(int argc, char **argv) {
	if (argc != 2 || chdir(argv[1]) < 0) { perror("worker"); return 1; }
	setup();
	setvbuf(stdout, 0, _IOFBF, 1 << 16);
	char *line = 0;
	size_t cap = 0;
	while (getline(&line, &cap, stdin) > 0) {
		args = 0;
		for (char *w = strtok(line, " \n"); w && args < 16; w = strtok(0, " \n")) arg[args++] = w;
		if (!args) continue;
		run(arg[0]);
		fflush(stdout);
	}
	return 0;
}
