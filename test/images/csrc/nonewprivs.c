/* Installed setuid root: shows whether no_new_privs kept the bit from working. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
	printf("Effective uid: %d\n", (int)geteuid());
	return 0;
}
