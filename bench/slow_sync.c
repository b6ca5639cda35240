/* Preloaded into Postgres, so that every sync takes DELAY_MICROS longer, as on a disk that is farther away. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static int delayed(const char *name, int file)
{
    struct timespec pause = {0, DELAY_MICROS * 1000L};
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

    while (nanosleep(&pause, &pause) != 0)
        ;
    return sync(file);
}

int fsync(int file)
{
    return delayed("fsync", file);
}

int fdatasync(int file)
{
    return delayed("fdatasync", file);
}
