package testbed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// An identity is what a TLS server on the loopback address shows, and what its
// clients check.
type identity struct {
	certificate []byte // PEM
	key         []byte // PEM
	client      *tls.Config
}

// newIdentity makes a key (P-256) and a certificate for it, valid for a day.
func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a TLS identity: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "vos"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make a TLS identity: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make a TLS identity: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make a TLS identity: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	return &identity{
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		client:      &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"},
	}, nil
}

// write puts certificate.pem and key.pem into folder.
func (i *identity) write(folder string) error {
	if err := os.WriteFile(filepath.Join(folder, "certificate.pem"), i.certificate, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "key.pem"), i.key, 0o600)
}
