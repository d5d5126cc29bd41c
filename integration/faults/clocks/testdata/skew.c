// Moves the wall clock of the program that it is loaded into (LD_PRELOAD) by the seconds that the file SKEW holds, a number of 8
// bytes. The file is mapped, so that who writes it moves the clock at once. Monotonic clocks are left alone.
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none, *skew = &none;

__attribute__((constructor)) static void map(void) {
	const char *path = getenv("SKEW");
	int fd = path ? open(path, O_RDONLY) : -1;
	if (fd < 0) return;
	void *m = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
	if (m != MAP_FAILED) skew = m;
	close(fd);
}

int clock_gettime(clockid_t id, struct timespec *ts) {
	int r = syscall(SYS_clock_gettime, id, ts);
	if (r == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) ts->tv_sec += *skew;
	return r;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz) {
	int r = syscall(SYS_gettimeofday, tv, tz);
	if (r == 0 && tv) tv->tv_sec += *skew;
	return r;
}

time_t time(time_t *t) {
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	if (t) *t = ts.tv_sec;
	return ts.tv_sec;
}
