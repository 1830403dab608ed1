// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes every kind of memory call, and writes what the kernel says is mapped in the end, of each
 * process: argument 1 and the pid name the file. Argument 2 is a file to map.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/sched.h>
extern char **environ;
static int deep(int n) { volatile char b[4096]; memset((char *)b, n, sizeof b); return n ? deep(n - 1) + b[7] : 0; }
static void *thread(void *a)
{
	for (int i = 0; i < 200; i++) {
		char *p = mmap(0, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(p, 1, 65536);
		munmap(p, 65536);
	}
	return a;
}
static void maps(const char *name)
{
	char path[200], buf[65536]; int in = open("/proc/self/maps", O_RDONLY), n;
	snprintf(path, sizeof path, "%s.%d", name, getpid());
	int out = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
	while ((n = read(in, buf, sizeof buf)) > 0) if (write(out, buf, n) != n) abort();
	close(in); close(out);
}
int main(int argc, char **argv)
{
	const char *name = argv[1];
	char *area = mmap(0, 1 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(area, 1, 1 << 20);
	int fd = open(argv[2], O_RDWR | O_CREAT, 0600);
	if (ftruncate(fd, 1 << 20)) abort();
	/* MAP_FIXED in the middle, over the edge, of files, shared and private */
	mmap(area + 65536, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	mmap(area + 4096 * 100, 4096 * 10, 3, MAP_PRIVATE | MAP_FIXED, fd, 4096 * 3);
	char *sh = mmap(area + 4096 * 150, 4096 * 10, 3, MAP_SHARED | MAP_FIXED, fd, 0);
	memset(sh, 3, 40960); memset(area + 65536, 2, 4096 * 5);
	volatile char c = area[4096 * 101]; area[4096 * 101] = c + 1;
	munmap(area + 4096 * 200, 4096 * 3);
	mprotect(area + 4096 * 210, 4096 * 2, PROT_READ);
	mprotect(area + 4096 * 212, 4096 * 2, PROT_NONE);
	madvise(area, 65536, MADV_DONTNEED);
	area[1] = 1;
	/* mremap: grow in place or move, shrink, to a fixed place, leave the old one */
	char *m = mmap(0, 1 << 16, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); memset(m, 1, 1 << 16);
	m = mremap(m, 1 << 16, 1 << 18, MREMAP_MAYMOVE); memset(m, 1, 1 << 18);
	m = mremap(m, 1 << 18, 1 << 15, 0);
	m = mremap(m, 1 << 15, 1 << 15, MREMAP_MAYMOVE | MREMAP_FIXED, area + 4096 * 220);
	mremap(m, 1 << 15, 1 << 15, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	m[0] = 1;
	/* the heap */
	char *top = sbrk(0); sbrk(300000); memset(top, 1, 300000); brk(top + 100000); brk(top + 200001); memset(top, 1, 200001);
	/* the stack, a growing mapping, populated and read-only memory */
	deep(300);
	char *grow = mmap((void *)0x200000000, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
	grow[0] = 1; grow[-4096] = 1; grow[-8192] = 1;
	mmap(0, 1 << 16, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	char *zero = mmap(0, 1 << 16, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 16; i++) c += zero[i * 4096];
	for (int i = 0; i < 8; i++) zero[i * 4096] = 1;
	/* the kernel faults on our behalf */
	char *buf = mmap(0, 1 << 16, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	lseek(fd, 0, SEEK_SET); if (read(fd, buf, 1 << 16) != 1 << 16) abort();
	/* what fails is no event */
	munmap((void *)1, 4096); mmap((void *)4096, 4096, 3, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, 99, 1); mprotect((void *)0x100000, 4096, 3);
	int id = shmget(IPC_PRIVATE, 1 << 16, IPC_CREAT | 0600);
	char *seg = shmat(id, 0, 0); memset(seg, 1, 1 << 16); char *seg2 = shmat(id, 0, SHM_RDONLY); shmctl(id, IPC_RMID, 0); shmdt(seg2);
	pthread_t t[4];
	for (int i = 0; i < 4; i++) pthread_create(t + i, 0, thread, 0);
	for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
	fflush(0);
	if (!fork()) { memset(area + 65536 * 2, 9, 65536); munmap(area, 4096); maps(name); _exit(0); }
	wait(0);
	pid_t p; char *av[] = { "true", 0 };
	posix_spawn(&p, "/bin/true", 0, 0, av, environ); waitpid(p, 0, 0);
	if (!vfork()) { execl("/bin/true", "true", (char *)0); _exit(1); }
	wait(0);
	struct clone_args ca = { .exit_signal = SIGCHLD };
	if (!syscall(SYS_clone3, &ca, sizeof ca)) { area[65536 * 3] = 1; maps(name); _exit(0); }
	wait(0);
	ca.flags = CLONE_VFORK;
	if (!syscall(SYS_clone3, &ca, sizeof ca)) { memset(area + 65536 * 3, 1, 4096); execl("/bin/true", "true", (char *)0); }
	wait(0);
	maps(name);
	return 0;
}
