# Makes a host's root and becomes its first process.
# usage: host.sh client|server DIR
# In new mount, PID, UTS, network and IPC namespaces. Descriptor 3 is told
# "ready" when all is made. The host ends when standard input does.
name=$1
dir=$2
umask 022
mount --make-rprivate /
mkdir -p "$dir/$name"
cd "$dir/$name"
hostname "$name"

# sshfiles DIR OWNER: keys and configuration of a user of the client
sshfiles() {
	mkdir -p "$1"
	cp "$dir/user" "$1/id_lab"
	echo "10.77.0.2 $(cut -d' ' -f1,2 "$dir/host.pub")" >"$1/known_hosts"
	cat >"$1/config" <<-E
	Host server server-dev
	    HostName 10.77.0.2
	    IdentityFile $3/.ssh/id_lab
	    IdentitiesOnly yes
	    UserKnownHostsFile $3/.ssh/known_hosts
	    BatchMode yes
	    ControlPath none
	Host server
	    User root
	Host server-dev
	    User dev
	E
	chmod 700 "$1"
	chmod 600 "$1"/*
	chown -R "$2" "$1"
}

# first_process reaps what is orphaned, until whoever made the lab closes
# standard input or dies; then all processes of the host go with it.
first_process() {
	cat >/dev/null
	exit 0
}

# files that both hosts have of their own
mkdir -p etc root home
chmod 700 root
echo "$name" >root/marker

if [ "$name" = client ]; then
	sshfiles root/.ssh 0:0 /root
	mkdir -m 700 -p root/.run home/ann
	sshfiles home/ann/.ssh 1500:1500 /home/ann
	chown 1500:1500 home/ann
	cp /etc/passwd /etc/group etc/
	echo 'ann:x:1500:1500:Ann:/home/ann:/bin/sh' >>etc/passwd
	echo 'ann:x:1500:' >>etc/group
	mount --bind root /root
	mount --bind home /home
	mount --bind etc/passwd /etc/passwd
	mount --bind etc/group /etc/group
	mount -t proc proc /proc
	mount -t sysfs sysfs /sys
	cd /root
	echo ready >&3
	exec 3>&-
	first_process
fi

mkdir -p usr dev proc sys run/sshd run/lock tmp var/tmp var/log var/cache var/empty mnt opt srv old etc/ssh
mkdir -m 700 -p root/.ssh root/.run
chmod 1777 tmp var/tmp
for l in bin sbin lib lib32 lib64 libx32; do
	if [ -L "/$l" ]; then
		cp -P "/$l" .
	elif [ -d "/$l" ]; then
		mkdir "$l"
		binds="$binds $l"
	fi
done
mkdir -p local/bin local/share home/dev/.ssh etc/rexec
echo server >etc/marker
cp "$dir/bin/rexecd" local/bin/ 2>/dev/null || :
printf '#!/bin/sh\necho only on the server\n' >local/bin/only-on-server
chmod 755 local/bin/only-on-server
cp "$dir/user.pub" root/.ssh/authorized_keys
cp "$dir/user.pub" home/dev/.ssh/authorized_keys
chmod 700 home/dev/.ssh
chown -R 1600:1600 home/dev

: >var/log/lastlog
echo server >etc/hostname
printf '127.0.0.1 localhost\n10.77.0.1 client\n10.77.0.2 server\n' >etc/hosts
echo 'nameserver 10.77.0.53' >etc/resolv.conf
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >etc/nsswitch.conf
printf '/bin/sh\n/bin/bash\n' >etc/shells
cat >etc/passwd <<E
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
sshd:x:998:65534::/run/sshd:/usr/sbin/nologin
dev:x:1600:1600:Dev:/home/dev:/bin/sh
E
printf 'root:x:0:\ntty:x:5:\nnogroup:x:65534:\ndev:x:1600:\n' >etc/group
cp -a /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d /etc/alternatives etc/ 2>/dev/null || :
cp "$dir/host" etc/ssh/ssh_host_ed25519_key
chmod 600 etc/ssh/ssh_host_ed25519_key
cat >etc/ssh/sshd_config <<E
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 200
MaxSessions 200
PidFile none
PrintLastLog no
E

mount --bind . .
cd "$dir/$name"
for l in usr $binds; do
	mount --rbind "/$l" "$l"
	mount -o remount,bind,ro "$l"
done
mount --bind local usr/local
mount -t tmpfs -o mode=755,size=1m dev dev
mkdir dev/pts dev/shm dev/net
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
for d in null zero full random urandom tty fuse; do
	: >dev/$d
	mount --bind /dev/$d dev/$d
done
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
pivot_root . old
umount -l /old
rmdir /old
cd /
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
echo ready >&3
exec 3>&-
/usr/sbin/sshd -D -e &
first_process
