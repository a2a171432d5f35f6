package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"rerank.dev/devcluster/internal/proc"
)

const lifetime = 10 * 365 * 24 * time.Hour

// identity is one certificate of the cluster: the user it stands for, and where it serves, if it does.
type identity struct {
	file   string
	user   string
	groups []string
	server bool
}

func identities(c Config) []identity {
	ids := []identity{
		{file: "server", user: "devcluster", server: true},
		{file: "admin", user: "devcluster-admin", groups: []string{"system:masters"}},
		{file: "apiserver-kubelet", user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{file: "etcd-client", user: "kube-apiserver-etcd-client"},
		{file: "controller-manager", user: "system:kube-controller-manager"},
		{file: "scheduler", user: "system:kube-scheduler"},
	}
	for _, n := range c.Nodes {
		ids = append(ids, identity{file: "node-" + n.Name, user: nodeServerAccount + n.Name, groups: []string{"system:nodes"}})
	}
	return ids
}

// writePKI makes what is missing: the authority, the service accounts' key, the certificates and the kubeconfig files. Certificates for
// serving are made anew when the cluster's address has changed.
func (d Dir) writePKI(c Config) error {
	if err := os.MkdirAll(d.pki(""), 0o700); err != nil {
		return err
	}
	caCert, caKey, err := d.authority(c.Name)
	if err != nil {
		return err
	}
	if _, err := loadOrMakeKey(d.pki("service-accounts.key")); err != nil {
		return err
	}
	for _, id := range identities(c) {
		if err := d.issue(id, c, caCert, caKey); err != nil {
			return fmt.Errorf("certificate %q: %w", id.file, err)
		}
	}
	for file, id := range map[string]string{
		d.Kubeconfig(): "admin", d.pki("controller-manager.kubeconfig"): "controller-manager", d.pki("scheduler.kubeconfig"): "scheduler",
	} {
		if err := d.writeKubeconfig(file, id, c); err != nil {
			return err
		}
	}
	for _, n := range c.Nodes {
		id := "node-" + n.Name
		if err := d.writeKubeconfig(d.pki(id+".kubeconfig"), id, c); err != nil {
			return err
		}
	}
	return nil
}

func (d Dir) authority(name string) (*x509.Certificate, crypto.Signer, error) {
	key, err := loadOrMakeKey(d.pki("ca.key"))
	if err != nil {
		return nil, nil, err
	}
	if cert, err := loadCert(d.pki("ca.crt")); err == nil {
		return cert, key, nil
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "devcluster-" + name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	return saveCert(d.pki("ca.crt"), template, template, key.Public(), key)
}

func (d Dir) issue(id identity, c Config, ca *x509.Certificate, caKey crypto.Signer) error {
	file := d.pki(id.file + ".crt")
	address := net.ParseIP(c.APIAddress())
	if cert, err := loadCert(file); err == nil && (!id.server || cert.VerifyHostname(address.String()) == nil) {
		return nil
	}
	key, err := loadOrMakeKey(d.pki(id.file + ".key"))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: id.user, Organization: id.groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if id.server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.IPAddresses = []net.IP{address, net.IPv4(127, 0, 0, 1)}
		template.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	}
	_, _, err = saveCert(file, template, ca, key.Public(), caKey)
	return err
}

func (d Dir) writeKubeconfig(file, id string, c Config) error {
	var parts [3][]byte
	for i, name := range []string{"ca.crt", id + ".crt", id + ".key"} {
		var err error
		if parts[i], err = os.ReadFile(d.pki(name)); err != nil {
			return err
		}
	}
	name := "devcluster-" + c.Name
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: c.APIServer(), CertificateAuthorityData: parts[0]}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: parts[1], ClientKeyData: parts[2]}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	b, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return proc.WriteFile(file, b, 0o600)
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the system has no randomness
	}
	return n
}

func loadOrMakeKey(file string) (crypto.Signer, error) {
	b, err := os.ReadFile(file)
	if err == nil {
		block, _ := pem.Decode(b)
		if block == nil {
			return nil, fmt.Errorf("%s holds no key: run `devcluster down` and `up`", file)
		}
		return x509.ParseECPrivateKey(block.Bytes)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, proc.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func loadCert(file string) (*x509.Certificate, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return x509.ParseCertificate(block.Bytes)
}

func saveCert(file string, template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, crypto.Signer, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	return cert, signer, proc.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}
