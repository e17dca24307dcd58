/* Counts the file-system calls that a process makes below one directory, and strikes one of them.
 *
 * Loaded with LD_PRELOAD and asleep until strike_armed() is called (by ctypes, in a forked child). Then
 * every call that reaches a file below the directory is counted from 1; call number `aim` meets the
 * `effect`. With aim 0 nothing is struck and every call is told to `notice`: that is how a test learns
 * what there is to strike.
 *
 * Counted: what asks the disk for something or gives it something: open, read, write, sync, close,
 * truncate, rename, link, unlink, mkdir, rmdir, looking up a name (stat, access), listing a directory.
 * Not counted: locks, and questions about an open file (fstat, lseek, isatty), which the kernel answers
 * from memory; owners, modes and times, which only decorate; the entries of a listing (its opening
 * stands for them); copying inside the kernel (sendfile), which neither a training nor a deletion does.
 *
 * A descriptor is known by what /proc says it points to, so there is no table to keep. The calls are
 * made as bare system calls; only the listing of directories needs the C library's own functions.
 * Single-threaded by design: the counters are plain variables.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What a call does, as bits: LOOK reads, SYNC makes durable, CHANGE leaves another state behind, GROW
 * needs room, CUT can be done in part. */
enum { LOOK = 1, SYNC = 2, CHANGE = 4, GROW = 8, CUT = 16 };

/* What becomes of a struck call: the process dies before or after it, it fails (a close is done all the
 * same), it is done by half, or it is done by half and the process dies. */
typedef enum { NONE, KILL, KILL_AFTER, FAIL, HALF, TORN } Effect;

typedef void (*Notice)(const char *name, int traits, const char *path);

static char root[PATH_MAX];
static size_t root_length; /* 0 while asleep */
static long count, aim;
static Effect effect;
static int error_number, lasting_traits;
static Notice notice;

/* lasting: from the struck call on, every call with one of these traits meets the effect. */
void strike_armed(const char *directory, long at, int what, int error, int lasting, Notice told)
{
    snprintf(root, sizeof root, "%s", directory);
    count = 0, aim = at, effect = what, error_number = error, lasting_traits = lasting, notice = told;
    root_length = strlen(root);
}

static const char *below(const char *path)
{
    if (strncmp(path, root, root_length) || (path[root_length] != '/' && path[root_length] != '\0'))
        return NULL;
    return path[root_length] ? path + root_length + 1 : ".";
}

/* The path below the directory of an open file; NULL if it lies elsewhere. */
static const char *of(int descriptor)
{
    static char target[PATH_MAX];
    char link[64];
    if (!root_length)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, target, sizeof target - 1);
    if (length < 0)
        return NULL;
    target[length] = '\0';
    return below(target);
}

/* The same of a name: absolute, or seen from an open directory. The workspace is named absolutely, so
 * what is named from the working directory lies elsewhere. */
static const char *at(int directory, const char *path)
{
    static char joined[2 * PATH_MAX];
    if (!root_length || path[0] == '/')
        return root_length ? below(path) : NULL;
    const char *start = directory == AT_FDCWD ? NULL : of(directory);
    if (!start)
        return NULL;
    snprintf(joined, sizeof joined, "%s/%s", start, path);
    return joined;
}

static void die(void) { syscall(SYS_kill, syscall(SYS_getpid), SIGKILL); }

/* Count a call, and say what becomes of it. */
static Effect meet(const char *name, int traits, const char *path)
{
    if (!path)
        return NONE;
    count++;
    if (!aim || count == aim) {
        int kept = errno;
        notice(name, traits, path);
        errno = kept;
    }
    if (!aim || count < aim || (count > aim && !(traits & lasting_traits)))
        return NONE;
    if (effect == KILL)
        die();
    return effect;
}

static long failed(void)
{
    errno = error_number;
    return -1;
}

static long done(Effect met, long result)
{
    if (met == KILL_AFTER || met == TORN)
        die();
    return result;
}

#define THROUGH(name, traits, path, call)                            \
    do {                                                             \
        Effect met = meet(name, traits, path);                       \
        return met == FAIL ? failed() : done(met, call);             \
    } while (0)

#define ALSO(type, name, of_name, ...) type name(__VA_ARGS__) __attribute__((alias(#of_name)))

/* -- opening and closing -------------------------------------------------------------------------- */

static int opening(int flags)
{
    return (flags & O_CREAT ? CHANGE | GROW : 0) | (flags & O_TRUNC ? CHANGE : 0) | LOOK;
}

static int mode_of(int flags, va_list arguments)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0;
}

int openat(int directory, const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    int mode = mode_of(flags, arguments);
    va_end(arguments);
    THROUGH("open", opening(flags), at(directory, path), syscall(SYS_openat, directory, path, flags, mode));
}
ALSO(int, openat64, openat, int directory, const char *path, int flags, ...);

int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    int mode = mode_of(flags, arguments);
    va_end(arguments);
    return openat(AT_FDCWD, path, flags, mode);
}
ALSO(int, open64, open, const char *path, int flags, ...);

int creat(const char *path, mode_t mode) { return openat(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
ALSO(int, creat64, creat, const char *path, mode_t mode);

/* A failed close has closed all the same; what it fails to say is that the writes before it held. */
int close(int descriptor)
{
    Effect met = meet("close", LOOK, of(descriptor));
    long result = done(met, syscall(SYS_close, descriptor));
    return met == FAIL ? failed() : result;
}

/* -- reading, writing and syncing ----------------------------------------------------------------- */

ssize_t read(int descriptor, void *to, size_t size)
{
    THROUGH("read", LOOK, of(descriptor), syscall(SYS_read, descriptor, to, size));
}

ssize_t pread(int descriptor, void *to, size_t size, off_t offset)
{
    THROUGH("pread", LOOK, of(descriptor), syscall(SYS_pread64, descriptor, to, size, offset));
}
ALSO(ssize_t, pread64, pread, int descriptor, void *to, size_t size, off_t offset);

static int writing(size_t size) { return CHANGE | GROW | (size > 1 ? CUT : 0); }

static size_t part(Effect met, size_t size) { return met == HALF || met == TORN ? size / 2 : size; }

ssize_t write(int descriptor, const void *from, size_t size)
{
    THROUGH("write", writing(size), of(descriptor), syscall(SYS_write, descriptor, from, part(met, size)));
}

ssize_t pwrite(int descriptor, const void *from, size_t size, off_t offset)
{
    THROUGH("pwrite", writing(size), of(descriptor),
            syscall(SYS_pwrite64, descriptor, from, part(met, size), offset));
}
ALSO(ssize_t, pwrite64, pwrite, int descriptor, const void *from, size_t size, off_t offset);

/* Cut short, only the first of several pieces is written. */
ssize_t writev(int descriptor, const struct iovec *pieces, int number)
{
    THROUGH("writev", writing(number), of(descriptor),
            syscall(SYS_writev, descriptor, pieces, part(met, number) < (size_t)number ? 1 : number));
}

int fsync(int descriptor) { THROUGH("fsync", SYNC | GROW, of(descriptor), syscall(SYS_fsync, descriptor)); }

int fdatasync(int descriptor)
{
    THROUGH("fdatasync", SYNC | GROW, of(descriptor), syscall(SYS_fdatasync, descriptor));
}

int ftruncate(int descriptor, off_t size)
{
    THROUGH("ftruncate", CHANGE, of(descriptor), syscall(SYS_ftruncate, descriptor, size));
}
ALSO(int, ftruncate64, ftruncate, int descriptor, off_t size);

int truncate(const char *path, off_t size)
{
    THROUGH("truncate", CHANGE, at(AT_FDCWD, path), syscall(SYS_truncate, path, size));
}
ALSO(int, truncate64, truncate, const char *path, off_t size);

/* -- names ---------------------------------------------------------------------------------------- */

int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    THROUGH("rename", CHANGE | GROW, at(to, new), syscall(SYS_renameat2, from, old, to, new, flags));
}

int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }

int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int directory, const char *path, int flags)
{
    THROUGH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", CHANGE, at(directory, path),
            syscall(SYS_unlinkat, directory, path, flags));
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int directory, const char *path, mode_t mode)
{
    THROUGH("mkdir", CHANGE | GROW, at(directory, path), syscall(SYS_mkdirat, directory, path, mode));
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    THROUGH("link", CHANGE | GROW, at(to, new), syscall(SYS_linkat, from, old, to, new, flags));
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int symlinkat(const char *target, int directory, const char *path)
{
    THROUGH("symlink", CHANGE | GROW, at(directory, path), syscall(SYS_symlinkat, target, directory, path));
}

int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

/* -- looking -------------------------------------------------------------------------------------- */

int fstatat(int directory, const char *path, struct stat *found, int flags)
{
    const char *place = path[0] ? at(directory, path) : NULL; /* no name: a question about an open file */
    THROUGH("stat", LOOK, place, syscall(SYS_newfstatat, directory, path, found, flags));
}

int stat(const char *path, struct stat *found) { return fstatat(AT_FDCWD, path, found, 0); }

int lstat(const char *path, struct stat *found) { return fstatat(AT_FDCWD, path, found, AT_SYMLINK_NOFOLLOW); }

/* struct stat64 is struct stat where a long has 64 bits, the only machines this is built for. */
int fstatat64(int directory, const char *path, struct stat64 *found, int flags)
{
    return fstatat(directory, path, (struct stat *)found, flags);
}

int stat64(const char *path, struct stat64 *found) { return stat(path, (struct stat *)found); }

int lstat64(const char *path, struct stat64 *found) { return lstat(path, (struct stat *)found); }

int statx(int directory, const char *path, int flags, unsigned mask, struct statx *found)
{
    const char *place = path[0] ? at(directory, path) : NULL;
    THROUGH("stat", LOOK, place, syscall(SYS_statx, directory, path, flags, mask, found));
}

int access(const char *path, int mode)
{
    THROUGH("access", LOOK, at(AT_FDCWD, path), syscall(SYS_faccessat, AT_FDCWD, path, mode));
}

/* A listing opens and reads inside the C library, so its own function is called. */
#define LISTED(path, type, function, argument)                       \
    do {                                                             \
        Effect met = meet("list", LOOK, path);                       \
        if (met == FAIL) {                                           \
            failed();                                                \
            return NULL;                                             \
        }                                                            \
        DIR *opened = ((DIR * (*)(type)) dlsym(RTLD_NEXT, function))(argument); \
        done(met, 0);                                                \
        return opened;                                               \
    } while (0)

DIR *opendir(const char *path) { LISTED(at(AT_FDCWD, path), const char *, "opendir", path); }

DIR *fdopendir(int descriptor) { LISTED(of(descriptor), int, "fdopendir", descriptor); }
