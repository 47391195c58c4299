/* Stands for "rexec HOST" in the direct run: the command line's rules, and
 * otherwise nothing but execvp. In C, because a Go program has lost the
 * inherited signal dispositions before main, and a shell rewrites the
 * environment. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc > 2 && strcmp(argv[1], "--") == 0)
		argv++;
	else if (argc == 2)
		execl("/bin/sh", "sh", "-c", argv[1], (char *)0);
	if (argc > 1)
		execvp(argv[1], argv + 1);
	return errno == ENOENT || errno == ENOTDIR ? 127 : 126;
}
