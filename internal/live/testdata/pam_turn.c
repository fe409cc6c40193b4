/* A PAM module. What it remembers of a transaction, it leaves to libpam with the
 * function that is to free it. */
#include <stdlib.h>
#include <string.h>

typedef struct pam_handle pam_handle;
int pam_get_user(pam_handle *, const char **, const char *);
int pam_putenv(pam_handle *, const char *);
int pam_set_data(pam_handle *, const char *, void *, void (*)(pam_handle *, void *, int));
int pam_get_data(const pam_handle *, const char *, const void **);

enum { SUCCESS = 0, SERVICE_ERR = 3, AUTH_ERR = 7 };

static int turns; /* of all transactions */

struct memory {
	char user[32];
	int times;
};

static void forget(pam_handle *h, void *data, int status)
{
	(void)h, (void)status;
	memset(data, 0, sizeof(struct memory));
	free(data);
	turns--;
}

int pam_sm_authenticate(pam_handle *h, int flags, int argc, const char **argv)
{
	(void)flags;
	const char *user;
	const void *data;
	if (argc != 1 || strcmp(argv[0], "turn") || pam_get_user(h, &user, 0) || strlen(user) >= sizeof(((struct memory *)0)->user))
		return SERVICE_ERR;
	if (pam_get_data(h, "turn", &data)) {
		struct memory *m = calloc(1, sizeof *m);
		if (!m)
			return SERVICE_ERR;
		strcpy(m->user, user);
		if (pam_set_data(h, "turn", m, forget))
			return SERVICE_ERR;
		data = m;
		turns++;
	}
	struct memory *m = (struct memory *)data;
	m->times++;
	if (turns < 1 || strcmp(m->user, user))
		return AUTH_ERR;
	return pam_putenv(h, BUILD == 1 ? "TURN=1" : "TURN=2");
}

int pam_sm_setcred(pam_handle *h, int flags, int argc, const char **argv)
{
	(void)h, (void)flags, (void)argc, (void)argv;
	return SUCCESS;
}
